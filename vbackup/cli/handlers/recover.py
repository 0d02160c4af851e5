"""``vbackup recover``: finish or undo what a run that has died has left."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from vbackup.cli import output
from vbackup.cli.arguments import optional_domain_of
from vbackup.cli.context import Context
from vbackup.domain.host import Host
from vbackup.errors import InterruptedBySignalError, Status, UsageError, VbackupError
from vbackup.operations import recovery
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """Recover one domain or all; the exit status is 3 where some of several could not be."""
    domain = optional_domain_of(options)
    if options.all and domain is not None:
        raise UsageError("Give a domain or --all, not both.")
    if not options.all and domain is None:
        raise UsageError("Give a domain, or --all.")
    repository = Repository.open(context.repository_path())
    found: dict[str, Sequence[recovery.Recovered]] = {}
    failed: dict[str, VbackupError] = {}
    with Host(context.uri) as host, context.reporting() as reporter:
        for uuid in repository.uuids() if domain is None else [recovery.uuid_of(domain, host, repository)]:
            try:
                found[uuid] = recovery.run(
                    uuid,
                    host=host,
                    repository=repository,
                    reporter=reporter,
                    stop=context.stop,
                    abort=options.abort,
                    dry_run=options.dry_run,
                )
            except InterruptedBySignalError:
                raise
            except VbackupError as err:
                if domain is not None:
                    raise
                failed[uuid] = err
                reporter.warning(f"Domain {uuid}: {err}")
    _print(found, failed, context, dry_run=options.dry_run)
    if failed:
        return Status.SOME_FAILED if found else next(iter(failed.values())).status
    return Status.DONE


def _print(
    found: Mapping[str, Sequence[recovery.Recovered]],
    failed: Mapping[str, VbackupError],
    context: Context,
    *,
    dry_run: bool,
) -> None:
    rows = [(uuid, one) for uuid, of_domain in found.items() for one in of_domain]
    if context.as_json:
        document = {
            "dry_run": dry_run,
            "backups": [
                {"domain": {"uuid": uuid}, "id": one.id, "remedy": one.remedy.value, "reason": one.reason}
                for uuid, one in rows
            ],
            "failed": [{"domain": {"uuid": uuid}, "message": str(err)} for uuid, err in failed.items()],
        }
        context.print_document("vbackup.recover/1", document)
        return
    for uuid, one in rows:
        verb = f"would be {one.remedy.done}" if dry_run else f"was {one.remedy.done}"
        print(output.plain(f"Backup {one.id} of domain {uuid} {verb}: {one.reason}."))
    if not rows:
        print("Nothing is unfinished.")
