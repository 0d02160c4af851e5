"""``vbackup backup``: back up one domain, running or shut off; vbackup.cli.batch does it for more than one."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace

from vbackup.cli import batch, output, plans, script_options
from vbackup.cli.arguments import domains_of
from vbackup.cli.context import Context
from vbackup.domain import selection
from vbackup.domain.host import Host
from vbackup.engine import total_rate
from vbackup.errors import Status, UsageError
from vbackup.model import Backup, Compression, Level, Quiesce
from vbackup.operations import backup, documents
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """Back up the domains, or plan their backups, and print the result."""
    words = domains_of(options)
    if options.group and options.parallel is not None:
        raise UsageError("A group is always backed up at once; leave out --parallel or --group.")
    request = replace(request_of(options, words[0] if words else ""), note=options.note)
    repository = Repository.open(context.repository_path())
    with Host(context.uri) as host:
        if options.group or len(words) != 1 or not selection.is_one(words[0], host):
            return batch.run(request, words, options=options, context=context, host=host, repository=repository)
        if options.dry_run:
            _plan(request, context, host=host, repository=repository)
        else:
            _back_up(request, options, context=context, host=host, repository=repository)
    return Status.DONE


def request_of(options: argparse.Namespace, domain: str) -> backup.BackupRequest:
    """Return what commands.backup.add_making's arguments and --level ask for."""
    return backup.BackupRequest(
        domain=domain,
        level=Level(options.level),
        disks=tuple(options.disk),
        excluded_disks=tuple(options.exclude_disk),
        quiesce=Quiesce(options.quiesce),
        freeze_limit_s=options.freeze_limit,
        speed_bytes_s=options.speed,
        max_latency_ms=options.max_latency,
        compression=Compression(options.compress),
        wait_lock_s=options.wait_lock,
        fleecing=options.fleecing,
        exclusive=options.exclusive,
        allow_reflink=options.allow_reflink,
        with_media=options.with_media,
    )


def _plan(request: backup.BackupRequest, context: Context, *, host: Host, repository: Repository) -> None:
    with context.reporting(request.domain) as reporter:
        plan = backup.dry_run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        context.print_document("vbackup.plan/1", documents.plan(plan))
    else:
        plans.print_plan(plan)


def _back_up(
    request: backup.BackupRequest,
    options: argparse.Namespace,
    *,
    context: Context,
    host: Host,
    repository: Repository,
) -> None:
    with context.reporting(request.domain) as reporter, ExitStack() as stack:
        throttle = None
        if options.total_speed is not None:
            total = total_rate.TotalRate(options.total_speed, at_once=1)
            throttle = stack.enter_context(total.share(job_limit_bytes_s=options.speed))
        own = script_options.of_domain(options, request.domain, work="backup", reporter=reporter, stop=context.stop)
        done = backup.run(
            request,
            host=host,
            repository=repository,
            reporter=reporter,
            stop=context.stop,
            throttle=throttle,
            scripts=own,
        )
    if context.as_json:
        context.print_document("vbackup.backup/1", {**documents.backup(done), "scripts": own.documents()})
    elif not context.is_quiet:
        _print(done)


def _print(done: Backup) -> None:
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
    for disk in done.left_out:
        output.labelled("Left out: ", f"{disk.dev} ({disk.reason})")
    frozen = f", frozen for {done.frozen_ms} ms" if done.frozen_ms else ""
    print(f"{done.consistency.value.capitalize()}-consistent{frozen}; {done.duration_s:.1f} s.")
