"""``vbackup prune``: remove the backups that no rule keeps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.api import Connection, PruneLine, PruneRequest, Pruning, Rules, documents
from vbackup.cli import copies_prune, one_by_one, output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, VbackupError, error_document
from vbackup.report import Reporter


def run(options: argparse.Namespace, context: Context) -> int:
    """Prune the domains, one after the other; the exit status is 3 if it failed for some of several only.

    It is 8 if chains are longer than they may be, because backups are in use.
    """
    rules = _rules(options)
    if options.at_target is not None:
        return copies_prune.run(options, rules, context)
    if options.take_over or options.cache is not None or options.identities:
        raise UsageError("--take-over, --cache and --identity are for a prune with --at.")
    words = _words(options)
    vb = context.connect()
    repository = vb.repository
    uuids = [*repository.uuids(), *repository.linked()] if options.all else context.uuids_of(repository, words)
    is_one = not options.all and len(uuids) == 1
    with vb, context.reporting(repository.name_of(uuids[0]) if is_one else None) as reporter:
        done, failed = one_by_one.run(
            uuids,
            lambda uuid, reporter: _prune(uuid, rules, options, vb, reporter),
            repository=repository,
            reporter=reporter,
            is_one=is_one,
        )
    if is_one and failed:
        raise next(iter(failed.values()))
    if context.as_json:
        context.print_document("vbackup.prune/1", _document(done, failed, vb, dry_run=options.dry_run))
    elif options.dry_run or not context.is_quiet:
        _print(done, dry_run=options.dry_run)
        if not done and not failed:
            print(output.plain(f"No domains in {repository.path} yet."))
    if not failed:
        return Status.BUSY if any(one.busy for one in done) else Status.DONE
    print(f"vbackup: {len(failed)} of {len(uuids)} domains failed.", file=sys.stderr)
    return Status.SOME_FAILED


def _rules(options: argparse.Namespace) -> Rules:
    rules = Rules(
        last=options.keep_last,
        within=options.keep_within,
        hourly=options.keep_hourly,
        daily=options.keep_daily,
        weekly=options.keep_weekly,
        monthly=options.keep_monthly,
        yearly=options.keep_yearly,
    )
    if options.remove and not rules.is_empty:
        raise UsageError("Give rules (--keep-...) or backups to remove (--remove), not both.", help_of="vbackup prune")
    if not options.remove and rules.is_empty:
        raise UsageError(
            "No rule given, and without one no backup would be kept: give --keep-last, --keep-within, --keep-hourly,"
            " --keep-daily, --keep-weekly, --keep-monthly or --keep-yearly.",
            help_of="vbackup prune",
        )
    return rules


def _words(options: argparse.Namespace) -> list[str]:
    words = domain_words_of(options)
    if not options.all and not words:
        raise UsageError("Give a domain, or --all.")
    if options.max_chain is not None and options.consolidate == "never":
        raise UsageError("--max-chain merges backups, and --consolidate never forbids it.")
    if options.remove and (options.all or len(words) != 1):
        raise UsageError("--remove needs one domain: ids are unique in a domain only.")
    return words


def _prune(uuid: str, rules: Rules, options: argparse.Namespace, vb: Connection, reporter: Reporter) -> Pruning:
    request = PruneRequest(uuid, rules, tuple(options.remove), dry_run=options.dry_run, wait_lock_s=options.wait_lock)
    return vb.prune(request, way=options.consolidate, max_chain=options.max_chain, reporter=reporter)


def _document(
    done: Sequence[Pruning], failed: Mapping[str, VbackupError], vb: Connection, *, dry_run: bool
) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "domains": [
            {
                "domain": {"name": one.domain_name, "uuid": one.uuid},
                "backups": [_line_document(line) for line in one.lines],
                "kept": len(one.lines) - len(one.removed),
                "removed": len(one.removed),
                "freed_bytes": one.freed_bytes,
                "busy": [{"id": backup_id, "reason": reason} for backup_id, reason in one.busy.items()],
                "consolidation": None if one.merge is None else one.merge.document(),
            }
            for one in done
        ],
        "failed": [
            {"domain": {"name": vb.repository.name_of(uuid), "uuid": uuid}, "error": error_document(err)}
            for uuid, err in failed.items()
        ],
    }


def _line_document(line: PruneLine) -> dict[str, Any]:
    return {
        "id": line.id,
        "time": None if line.time is None else documents.time(line.time),
        "level": line.level,
        "size_bytes": line.size_bytes,
        "action": "keep" if line.is_kept else "remove",
        "reasons": list(line.reasons),
        "heirs": list(line.heirs),
    }


def _print(done: Sequence[Pruning], *, dry_run: bool) -> None:
    for number, one in enumerate(done):
        if number:
            print()
        print(output.plain(f"Domain {one.domain_name} ({one.uuid})"))
        output.table(("ID", "TIME", "SIZE", "ACTION", "WHY"), [_row(line) for line in one.lines])
        for sentence in one.merge.sentences() if one.merge is not None else ():
            print(output.plain(sentence))
        print(_summary(one, dry_run=dry_run))


def _row(line: PruneLine) -> tuple[str, ...]:
    why = ", ".join(line.reasons)
    if line.heirs:
        why += f"; its data goes to {', '.join(line.heirs)}"
    time = "-" if line.time is None else output.local_minute(line.time)
    return (line.id, time, output.size(line.size_bytes), "keep" if line.is_kept else "remove", why)


def _summary(one: Pruning, *, dry_run: bool) -> str:
    backups = f"{len(one.removed)} of {len(one.lines)} backups"
    if dry_run:
        changed = "nothing but what a killed run had left was changed" if one.has_recovered else "nothing was changed"
        return f"Would remove {backups} and free {output.size(max(one.freed_bytes, 0))}; {changed}."
    return f"Removed {backups}; {output.size(max(one.freed_bytes, 0))} freed."
