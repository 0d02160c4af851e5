"""``vbackup backup`` of domains of several hosts: select them, back them up, print one summary."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from vbackup.api import BackupPlan, BackupRequest, BatchResult, Fleet, FleetSelection, HostSelection
from vbackup.cli import batch, output, plans, script_options
from vbackup.cli.context import Context
from vbackup.errors import DomainNotFoundError, InterruptedBySignalError, Status, UsageError, error_document
from vbackup.model import Backup
from vbackup.report import Reporter


def run(
    request: BackupRequest, words: Sequence[str], *, options: argparse.Namespace, context: Context, vb: Fleet
) -> int:
    """Back up the domains that the words select on all hosts, or plan their backups, and print the results."""
    started = time.monotonic()
    selected = _select(words, options, vb)
    with context.reporting() as reporter:
        _report(selected, reporter, excluded=options.exclude)
        results = _run(request, selected, options=options, vb=vb, reporter=reporter)
    duration_s = round(time.monotonic() - started, 3)
    failure = _failure(results, selected)
    if context.as_json:
        context.print_document("vbackup.backups/1", _document(results, selected, duration_s=duration_s))
    elif options.dry_run or not context.is_quiet or failure is not None:
        _print(results, selected, duration_s=duration_s, dry_run=options.dry_run)
    if failure is not None:
        print(f"vbackup: {output.plain(failure)}", file=sys.stderr)
    return _status(results, selected)


def _select(words: Sequence[str], options: argparse.Namespace, vb: Fleet) -> FleetSelection:
    if options.all:
        return vb.select_all(options.exclude)
    try:
        selected = vb.select(words, options.exclude)
    except DomainNotFoundError as err:
        if options.strict:
            raise UsageError(f"{err} Nothing was backed up, as --strict asks.") from err
        raise
    if options.strict and not _lost(selected):  # a host that was not reached may have a domain that matches
        batch.refuse_unmatched(words, selected.unmatched)
    return selected


def _report(selected: FleetSelection, reporter: Reporter, *, excluded: Sequence[str]) -> None:
    for host in selected.hosts:
        if host.error is not None:
            reporter.warning(f"{host.name}: {host.error}")
    for word in selected.unmatched:
        option = f"--exclude {word}" if word in excluded else f"The pattern {word}"
        reporter.warning(f"{option} matches no domain of any host; 'virsh -c URI list --all' lists those of one.")
    for remark in selected.remarks:
        reporter.warning(remark)


def _run(
    request: BackupRequest, selected: FleetSelection, *, options: argparse.Namespace, vb: Fleet, reporter: Reporter
) -> Sequence[BatchResult[Backup] | BatchResult[BackupPlan]]:
    parallel, per_host = options.parallel, options.parallel_per_host
    scripts = script_options.for_several(options, reporter)
    if options.dry_run:
        return vb.plan_all(selected, request, parallel=parallel, parallel_per_host=per_host, reporter=reporter)
    return vb.backup_all(
        selected,
        request,
        parallel=parallel,
        parallel_per_host=per_host,
        total_speed_bytes_s=options.total_speed,
        scripts=scripts,
        reporter=reporter,
    )


def _lost(selected: FleetSelection) -> list[HostSelection]:
    return [host for host in selected.hosts if host.error is not None]


def _status(results: Sequence[BatchResult[Any]], selected: FleetSelection) -> int:
    """Return the exit status: if there is nothing but hosts out of reach, it is that of the first of them."""
    lost = [host.error for host in selected.hosts if host.error is not None]
    if lost and not results:
        return lost[0].status
    if lost and not any(isinstance(result.error, InterruptedBySignalError) for result in results):
        return Status.SOME_FAILED
    return batch.status_of(results, is_group=False)


def _failure(results: Sequence[BatchResult[Any]], selected: FleetSelection) -> str | None:
    lost, failed = _lost(selected), any(result.error for result in results)
    sentences = [batch.failure(results, is_group=False)] if failed else []
    if lost:
        which = ", ".join(host.name for host in lost)
        sentences.append(f"Nothing was backed up on {len(lost)} of {_counted(len(selected.hosts))}: {which}.")
    return " ".join(sentences) or None


def _counted(hosts: int) -> str:
    return "1 host" if hosts == 1 else f"{hosts} hosts"


def _document(results: Sequence[BatchResult[Any]], selected: FleetSelection, *, duration_s: float) -> dict[str, Any]:
    failed = sum(result.error is not None for result in results)
    return {
        "hosts": [_host(host) for host in selected.hosts],
        "domains": [{**batch.entry(result), "host": result.host} for result in results],
        "left_out": [
            {"name": one.name, "uuid": one.uuid, "reason": one.reason, "host": host.name}
            for host in selected.hosts
            for one in host.selection.skipped
        ],
        "unmatched": list(selected.unmatched),
        "done": len(results) - failed,
        "failed": failed,
        "group": None,
        "duration_s": duration_s,
    }


def _host(host: HostSelection) -> dict[str, Any]:
    error = {} if host.error is None else {"error": error_document(host.error)}
    return {"name": host.name, "uri": host.uri, **error}


def _print(results: Sequence[BatchResult[Any]], selected: FleetSelection, *, duration_s: float, dry_run: bool) -> None:
    for result in results:
        if isinstance(result.made, BackupPlan):
            plans.print_plan(result.made)
            print()
    rows = [
        *((result.host or "-", *batch.row(result)) for result in results),
        *((host.name, "-", "-", "-", "-", "-", f"failed: {host.error}") for host in _lost(selected)),
    ]
    output.table(("HOST", "DOMAIN", "LEVEL", "COPIED", "SIZE", "TIME", "RESULT"), rows)
    for host in selected.hosts:
        for domain in host.selection.skipped:
            output.labelled("Left out: ", f"{host.name}/{domain.name} ({domain.reason})")
    done = sum(result.error is None for result in results)
    verb = "planned" if dry_run else "backed up"
    reached = len(selected.hosts) - len(_lost(selected))
    of_hosts = f"{reached} of {_counted(len(selected.hosts))}" if _lost(selected) else _counted(reached)
    print(f"{done} of {batch.counted(len(results))} on {of_hosts} {verb} in {duration_s:.1f} s.")
