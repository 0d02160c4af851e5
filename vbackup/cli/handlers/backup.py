"""``vbackup backup``: back up a domain, running or off, or several of them (vbackup.cli.batch)."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from vbackup.cli import batch, output, plans
from vbackup.cli.arguments import domains_of
from vbackup.cli.context import Context
from vbackup.domain import selection
from vbackup.domain.host import Host
from vbackup.engine import total_rate
from vbackup.errors import Status, UsageError
from vbackup.model import Backup, Compression, Level, Quiesce
from vbackup.operations import backup
from vbackup.repository import manifest
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """Back up, or plan and check."""
    words = domains_of(options)
    if options.group and options.parallel is not None:
        raise UsageError("All domains of a group are backed up at once; leave out --parallel, or --group.")
    request = backup.BackupRequest(
        domain=words[0] if words else "",
        level=Level(options.level),
        disks=tuple(options.disk),
        excluded_disks=tuple(options.exclude_disk),
        quiesce=Quiesce(options.quiesce),
        freeze_limit_s=options.freeze_limit,
        speed_bytes_s=options.speed,
        max_latency_ms=options.max_latency,
        compression=Compression(options.compress),
        wait_lock_s=options.wait_lock,
        fleecing=Path(options.fleecing) if options.fleecing else None,
    )
    repository = Repository.open(context.repository_path())
    with Host(context.uri) as host:
        if len(words) == 1 and not options.group and selection.is_one(words[0], host):
            return _run_one(request, options, context, host, repository)
        return batch.run(request, words, options, context, host=host, repository=repository)


def _run_one(
    request: backup.BackupRequest, options: argparse.Namespace, context: Context, host: Host, repository: Repository
) -> int:
    if options.dry_run:
        with context.reporting() as reporter:
            made = backup.dry_run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
        if context.as_json:
            context.print_document("vbackup.plan/1", plans.document(made))
        else:
            plans.print_plan(made)
        return Status.DONE
    with context.reporting() as reporter, ExitStack() as stack:
        throttle = None
        if options.total_speed is not None:
            total = total_rate.TotalRate(options.total_speed, at_once=1)
            throttle = stack.enter_context(total.share(job_limit_bytes_s=options.speed))
        done = backup.run(
            request, host=host, repository=repository, reporter=reporter, stop=context.stop, throttle=throttle
        )
    _print_backup(done, context)
    return Status.DONE


def _print_backup(done: Backup, context: Context) -> None:
    if context.as_json:
        context.print_document("vbackup.backup/1", manifest.document(done))
        return
    print(output.plain(f"Backup {done.id} of domain {done.domain_name}"))
    output.table(
        ("DISK", "LEVEL", "COPIED", "SIZE", "WHY"),
        [
            (
                image.dev,
                image.level.value,
                output.size(image.copied_bytes),
                output.size(image.file_size_bytes),
                image.reason,
            )
            for image in done.disks
        ],
    )
    for left in done.left_out:
        print(output.plain(f"Left out: {left.dev} ({left.reason})"))
    frozen = f", frozen for {done.frozen_ms} ms" if done.frozen_ms else ""
    print(f"{done.consistency.value.capitalize()}-consistent{frozen}; {done.duration_s:.1f} s.")
