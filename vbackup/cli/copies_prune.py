"""``vbackup prune --at``: remove points at a target that no rule keeps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vbackup.api import CopiesPruned, CopyLine, CopyPruneRequest, Rules, documents
from vbackup.cli import copies, output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, rules: Rules, context: Context) -> int:
    """Prune the domains at the target, one after the other. That it forbids a deletion is status 0, and reported."""
    words = domain_words_of(options)
    if not options.all and not words:
        raise UsageError("Give a domain, or --all.")
    if options.max_chain is not None or options.consolidate != "auto":
        raise UsageError("Nothing is merged at a target of copies: --max-chain and --consolidate are for a repository.")
    if options.remove and (options.all or len(words) != 1):
        raise UsageError("--remove needs one domain: ids are unique in a domain only.")
    with (
        context.reporting() as reporter,
        copies.opened(options, context, options.at_target, reporter) as target,
    ):
        uuids = [target.repository.find(word) for word in words] if words else target.repository.uuids()
        done = [target.prune(_request(uuid, rules, options)) for uuid in dict.fromkeys(uuids)]
    if context.as_json:
        context.print_document("vbackup.copyprune/1", _document(done, target.name, dry_run=options.dry_run))
    elif options.dry_run or not context.is_quiet:
        _print(done, dry_run=options.dry_run)
    return Status.DONE


def _request(uuid: str, rules: Rules, options: argparse.Namespace) -> CopyPruneRequest:
    return CopyPruneRequest(
        uuid,
        rules,
        tuple(options.remove),
        dry_run=options.dry_run,
        take_over=options.take_over,
        wait_lock_s=options.wait_lock,
    )


def _document(done: Sequence[CopiesPruned], target: str, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "target": target,
        "domains": [
            {
                "domain": {"name": one.domain_name, "uuid": one.uuid},
                "backups": [_line_document(line) for line in one.lines],
                "kept": len(one.lines) - len(one.removed),
                "removed": len(one.removed),
                "freed_bytes": one.freed_bytes,
                "left_objects": one.left_objects,
                "rests": one.rests,
            }
            for one in done
        ],
    }


def _line_document(line: CopyLine) -> dict[str, Any]:
    return {
        "id": line.id,
        "time": None if line.time is None else documents.time(line.time),
        "level": line.level,
        "size_bytes": line.size_bytes,
        "action": "keep" if line.is_kept else "remove",
        "reasons": list(line.reasons),
        "locked": line.is_locked,
    }


def _print(done: Sequence[CopiesPruned], *, dry_run: bool) -> None:
    for number, one in enumerate(done):
        if number:
            print()
        print(output.plain(f"Domain {one.domain_name} ({one.uuid})"))
        output.table(("ID", "TIME", "SIZE", "ACTION", "WHY"), [_row(line) for line in one.lines])
        if one.left_objects:
            print(f"{one.left_objects} objects of removed backups are locked; a later prune deletes them.")
        backups = f"{len(one.removed)} of {len(one.lines)} backups"
        if dry_run:
            print(f"Would remove {backups} and free {output.size(one.freed_bytes)}; nothing was changed.")
        else:
            print(f"Removed {backups}; {output.size(one.freed_bytes)} freed.")


def _row(line: CopyLine) -> tuple[str, ...]:
    time = "-" if line.time is None else output.local_minute(line.time)
    action = "keep" if line.is_kept else "remove"
    return (line.id, time, output.size(line.size_bytes), action, ", ".join(line.reasons))
