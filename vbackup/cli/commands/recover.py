"""``vbackup recover``: finish or undo what a run that has died has left."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vbackup.cli import output
from vbackup.cli.arguments import add_common, add_domain
from vbackup.cli.context import Context, optional_domain_of
from vbackup.errors import InterruptedBySignalError, Status, UsageError, VbackupError

if TYPE_CHECKING:
    from vbackup.operations.recovery import Recovered


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "recover",
        description="Finish the backups whose jobs are still in QEMU, and undo the others that were cut off.",
        allow_abbrev=False,
    )
    add_domain(parser, required=False)
    add_common(parser)
    parser.add_argument("--all", action="store_true", help="of all domains in the repository")
    parser.add_argument("--abort", action="store_true", help="finish none, undo all")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, context: Context) -> int:
    """Recover one domain or all; the exit status is 3 where some of several could not be."""
    domain = optional_domain_of(options)
    if options.all and domain is not None:
        raise UsageError("Give a domain or --all, not both.")
    if not options.all and domain is None:
        raise UsageError("Give a domain, or --all.")
    repository = context.repository()
    from vbackup.domain.host import Host
    from vbackup.operations import recovery

    found: dict[str, Sequence[Recovered]] = {}
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
    found: Mapping[str, Sequence[Recovered]], failed: Mapping[str, VbackupError], context: Context, *, dry_run: bool
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
