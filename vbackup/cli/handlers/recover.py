"""``vbackup recover``: finish or undo the backups that an interrupted vbackup left unfinished."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vbackup.api import Connection, Recovered
from vbackup.cli import output
from vbackup.cli.arguments import optional_domain_of
from vbackup.cli.context import Context
from vbackup.errors import InterruptedBySignalError, Status, UsageError, VbackupError, error_document

#: What was done, by the UUID of the domain.
_Recovered = Mapping[str, Sequence[Recovered]]
#: Why nothing could be done, by the UUID of the domain.
_Failed = Mapping[str, VbackupError]


def run(options: argparse.Namespace, context: Context) -> int:
    """Recover one domain or all; the exit status is 3 if it failed for some of them only."""
    domain = optional_domain_of(options)
    if options.adopt:
        return _adopt(domain, options, context)
    if options.all and domain is not None:
        raise UsageError("Give a domain or --all, not both.")
    if not options.all and domain is None:
        raise UsageError("Give a domain, or --all.")
    with context.connect() as vb:
        recovered, failed = _recover(domain, options, context=context, vb=vb)
    if context.as_json:
        context.print_document("vbackup.recover/1", _document(recovered, failed, dry_run=options.dry_run))
    elif options.dry_run or not context.is_quiet:
        _print(recovered, failed, dry_run=options.dry_run, name_of=lambda uuid: domain or vb.repository.name_of(uuid))
    if failed:
        return Status.SOME_FAILED if recovered else next(iter(failed.values())).status
    return Status.DONE


def _adopt(domain: str | None, options: argparse.Namespace, context: Context) -> int:
    others = (options.all, options.abort, options.force, options.dry_run, options.exclusive)
    if domain is not None or any(others):
        raise UsageError("--adopt is about the whole repository; give it alone.")
    with context.connect() as vb, context.reporting() as reporter:
        adopted = vb.adopt(reporter=reporter)
    if context.as_json:
        discarded = [{"domain": {"uuid": uuid}, "id": backup_id} for uuid, backup_id in adopted.discarded]
        document = {"id": adopted.repository_id, "former_id": adopted.former_id, "discarded": discarded}
        context.print_document("vbackup.adopt/1", document)
    elif not context.is_quiet:
        print(
            output.plain(
                f"The repository in {vb.repository.path} is {adopted.repository_id} now; it was a copy of"
                f" {adopted.former_id}. The next backup of each disk is a full."
            )
        )
    return Status.DONE


def _recover(
    domain: str | None, options: argparse.Namespace, *, context: Context, vb: Connection
) -> tuple[_Recovered, _Failed]:
    recovered: dict[str, Sequence[Recovered]] = {}
    failed: dict[str, VbackupError] = {}
    vb.connect_to_libvirt()
    with context.reporting(domain) as reporter:
        everything = [*vb.repository.uuids(), *vb.repository.linked()]
        for uuid in everything if domain is None else [vb.interrupted_uuid_of(domain)]:
            try:
                recovered[uuid] = vb.recover(
                    uuid,
                    abort=options.abort,
                    dry_run=options.dry_run,
                    exclusive=options.exclusive,
                    presume_dead=options.force,
                    reporter=reporter,
                )
            except InterruptedBySignalError:
                raise
            except VbackupError as err:
                if domain is not None:
                    raise
                failed[uuid] = err
                reporter.warning(f"Domain {vb.repository.name_of(uuid)}: {err}")
    return recovered, failed


def _document(recovered: _Recovered, failed: _Failed, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "backups": [
            {"domain": {"uuid": uuid}, "id": backup.id, "remedy": backup.remedy.value, "reason": backup.reason}
            for uuid, backups in recovered.items()
            for backup in backups
        ],
        "failed": [
            {"domain": {"uuid": uuid}, "message": str(err), "error": error_document(err)}
            for uuid, err in failed.items()
        ],
    }


def _print(recovered: _Recovered, failed: _Failed, *, dry_run: bool, name_of: Callable[[str], str]) -> None:
    for uuid, backups in recovered.items():
        for backup in backups:
            verb = f"would be {backup.remedy.done}" if dry_run else f"was {backup.remedy.done}"
            print(output.plain(f"Backup {backup.id} of domain {name_of(uuid)} {verb}: {backup.reason}."))
    if not any(recovered.values()) and not failed:
        print("No unfinished backups.")
