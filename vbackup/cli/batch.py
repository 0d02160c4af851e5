"""``vbackup backup`` of more than one domain: select them, back them up, print one summary."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from vbackup.api import BackupPlan, BackupRequest, BatchResult, Connection, Selection, SkippedDomain, documents
from vbackup.cli import output, plans, script_options
from vbackup.cli.context import Context
from vbackup.errors import (
    DomainNotFoundError,
    GroupError,
    InterruptedBySignalError,
    Status,
    UsageError,
    command,
    error_document,
)
from vbackup.model import Backup, Group
from vbackup.report import Reporter


def select(words: Sequence[str], options: argparse.Namespace, vb: Connection) -> Selection:
    """Return the domains that the command is about. Raises DomainNotFoundError, HostUnreachableError, UsageError."""
    if options.all:
        return vb.select_all(options.exclude)
    try:
        selected = vb.select(words, options.exclude)
    except DomainNotFoundError as err:
        if options.strict:
            raise UsageError(f"{err} Nothing was backed up, as --strict asks.") from err
        raise
    if options.strict:
        refuse_unmatched(words, selected.unmatched)
    return selected


def refuse_unmatched(words: Sequence[str], unmatched: Sequence[str]) -> None:
    """Raise UsageError for a word of the user that matches nothing, before anything is backed up."""
    for word in words:
        if word in unmatched:
            raise UsageError(f"The pattern {word!r} matches no domain. Nothing was backed up, as --strict asks.")


def run(
    request: BackupRequest, selected: Selection, *, options: argparse.Namespace, context: Context, vb: Connection
) -> int:
    """Back up the domains, or plan their backups, and print the results."""
    started = time.monotonic()
    with context.reporting() as reporter:
        for word in selected.unmatched:
            option = f"--exclude {word}" if word in options.exclude else f"The pattern {word}"
            listing = command("virsh list --all", context.uri)
            reporter.warning(f"{option} matches no domain; '{listing}' lists all domains.")
        results = _run(request, selected, options=options, vb=vb, reporter=reporter)
    duration_s = round(time.monotonic() - started, 3)
    if context.as_json:
        context.print_document("vbackup.backups/1", _document(results, selected, duration_s=duration_s))
    elif options.dry_run or not context.is_quiet or any(result.error for result in results):
        _print(results, selected.skipped, duration_s=duration_s, dry_run=options.dry_run)
    if any(result.error for result in results):
        print(f"vbackup: {failure(results, is_group=options.group)}", file=sys.stderr)
    return status_of(results, is_group=options.group)


def _run(
    request: BackupRequest, selected: Selection, *, options: argparse.Namespace, vb: Connection, reporter: Reporter
) -> Sequence[BatchResult[Backup] | BatchResult[BackupPlan]]:
    total, parallel = options.total_speed, options.parallel
    scripts = script_options.for_several(options, reporter)
    if options.dry_run:
        return vb.plan_all(selected, request, parallel=parallel, reporter=reporter)
    if options.group:
        return vb.backup_group(selected, request, total_speed_bytes_s=total, scripts=scripts, reporter=reporter)
    return vb.backup_all(
        selected, request, parallel=parallel, total_speed_bytes_s=total, scripts=scripts, reporter=reporter
    )


def status_of(results: Sequence[BatchResult[Any]], *, is_group: bool) -> int:
    """Return the exit status: a signal comes before other failures, a group has that of the domain that failed."""
    errors = [result.error for result in results if result.error is not None]
    for err in errors:
        if isinstance(err, InterruptedBySignalError):
            return err.status
    if not errors:
        return Status.DONE
    if not is_group:
        return Status.SOME_FAILED
    return next((err.status for err in errors if not isinstance(err, GroupError)), errors[0].status)


def failure(results: Sequence[BatchResult[Any]], *, is_group: bool) -> str:
    """Return the last sentence of a command of which not all succeeded."""
    failed = sum(result.error is not None for result in results)
    signals = [result.error.signum for result in results if isinstance(result.error, InterruptedBySignalError)]
    if signals:
        return f"Stopped by {signal.Signals(signals[0]).name}; {failed} of {counted(len(results))} not backed up."
    if is_group and failed == len(results):
        first = results[0]
        culprit = first.error.domain if isinstance(first.error, GroupError) else first.domain.name
        return output.plain(f"Domain {culprit} failed; no backup of the group was kept.")
    return f"{failed} of {counted(len(results))} failed."


def counted(count: int) -> str:
    """Return the number of domains in words."""
    return "1 domain" if count == 1 else f"{count} domains"


def _group(results: Sequence[BatchResult[Any]]) -> Group | None:
    return next((result.made.group for result in results if isinstance(result.made, Backup)), None)


def _document(results: Sequence[BatchResult[Any]], selected: Selection, *, duration_s: float) -> dict[str, Any]:
    group = _group(results)
    failed = sum(result.error is not None for result in results)
    return {
        "domains": [entry(result) for result in results],
        "left_out": [{"name": one.name, "uuid": one.uuid, "reason": one.reason} for one in selected.skipped],
        "unmatched": list(selected.unmatched),
        "done": len(results) - failed,
        "failed": failed,
        "group": None if group is None else documents.group(group),
        "duration_s": duration_s,
    }


def entry(result: BatchResult[Any]) -> dict[str, Any]:
    """Return what the document has of one domain."""
    of_domain = {
        "name": result.domain.name,
        "uuid": result.domain.uuid,
        "duration_s": result.duration_s,
        "scripts": [outcome.document() for outcome in result.scripts],
    }
    if result.error is not None:
        return {**of_domain, "error": error_document(result.error)}
    if isinstance(result.made, Backup):
        return {**of_domain, "backup": {"schema": "vbackup.backup/1", **documents.backup(result.made)}}
    assert result.made is not None  # a result has either
    return {**of_domain, "plan": {"schema": "vbackup.plan/1", **documents.plan(result.made)}}


def _print(
    results: Sequence[BatchResult[Any]], skipped: Sequence[SkippedDomain], *, duration_s: float, dry_run: bool
) -> None:
    for result in results:
        if result.made is not None and not isinstance(result.made, Backup):
            plans.print_plan(result.made)
            print()
    output.table(("DOMAIN", "LEVEL", "COPIED", "SIZE", "TIME", "RESULT"), [row(result) for result in results])
    for domain in skipped:
        output.labelled("Left out: ", f"{domain.name} ({domain.reason})")
    group = _group(results)
    if group is not None:
        print(f"Group {group.id}: all domains within {group.spread_ms:.1f} ms.")
    done = sum(result.error is None for result in results)
    verb = "planned" if dry_run else "backed up"
    print(f"{done} of {counted(len(results))} {verb} in {duration_s:.1f} s.")


def row(result: BatchResult[Any]) -> tuple[str, ...]:
    """Return what the table has of one domain."""
    name, took = result.domain.name, f"{result.duration_s:.1f} s"
    if result.error is not None:
        return (name, "-", "-", "-", took, f"failed: {result.error}")
    assert result.made is not None  # a result has either
    if not isinstance(result.made, Backup):
        return (name, result.made.level.value, "-", "-", took, "planned; nothing was kept")
    copied_bytes = sum(image.copied_bytes for image in result.made.disks)
    sizes = (output.size(copied_bytes), output.size(result.made.size_bytes))
    return (name, result.made.level.value, *sizes, took, result.made.id)
