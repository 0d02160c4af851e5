"""``vbackup consolidate``: make backups independent of older ones."""

from __future__ import annotations

import argparse

from vbackup.api import Consolidated, ConsolidateRequest, Way
from vbackup.cli import merges
from vbackup.cli.arguments import backup_of, domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Consolidate, and print what was done; the exit status is 8 if a backup was in use."""
    backup_id = backup_of(options)
    if options.full == (options.max_chain is not None):
        raise UsageError("Give a backup with --full, or --max-chain N.")
    if options.full != (backup_id is not None):
        raise UsageError("--full makes one backup a full: give its ID. --max-chain is about all backups of the domain.")
    if options.consolidate in (Way.IN_PLACE.value, Way.NEVER.value):
        raise UsageError(f"--consolidate {options.consolidate} removes or keeps backups; here all stay: give another.")
    with context.connect() as vb, context.reporting(domain_of(options)) as reporter:
        request = ConsolidateRequest(
            uuid=context.uuid_of(vb.repository, domain_of(options)),
            backup_id=backup_id,
            max_chain=options.max_chain,
            way=Way(options.consolidate),
            speed_bytes_s=options.speed,
            dry_run=options.dry_run,
        )
        done = vb.consolidate(request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.consolidate/1", _document(done, request))
    elif request.dry_run or not context.is_quiet:
        _print(done, request)
    return Status.BUSY if done.busy else Status.DONE


def _document(done: Consolidated, request: ConsolidateRequest) -> dict[str, object]:
    return {
        "domain": {"uuid": request.uuid},
        "dry_run": request.dry_run,
        "plan": done.plan.document(),
        "merged": list(done.merged),
        "busy": [{"id": backup_id, "reason": reason} for backup_id, reason in done.busy.items()],
    }


def _print(done: Consolidated, request: ConsolidateRequest) -> None:
    if request.dry_run:
        merges.print_plan(done.plan)
    for backup_id in done.merged:
        print(f"Backup {backup_id} needs no other backup any more.")
    merges.print_kept(done.busy)
    if not done.plan.merges:
        print("Nothing to do: no chain is longer." if request.max_chain else "Nothing to do: it is a full already.")
