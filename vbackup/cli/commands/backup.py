"""``vbackup backup``: back up a domain, running or off, or several of them (vbackup.cli.batch)."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup.cli import output
from vbackup.cli.arguments import add_common, add_domains, count, freeze_limit_s, milliseconds, seconds, speed_bytes_s
from vbackup.cli.context import Context, domains_of
from vbackup.domain.freeze import DEFAULT_LIMIT_S
from vbackup.errors import Status, UsageError
from vbackup.model import Backup, Compression, Level, Quiesce
from vbackup.repository import manifest

if TYPE_CHECKING:
    from vbackup.domain.host import Host
    from vbackup.operations.backup import BackupRequest
    from vbackup.repository.repository import Repository


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "backup",
        description="Back up all disks of a domain, or of several, running or off, as they are at one moment.",
        allow_abbrev=False,
    )
    add_domains(parser)
    add_common(parser)
    parser.add_argument("--parallel", metavar="N", type=count, help="so many domains at the same time (default: 4)")
    parser.add_argument("--group", action="store_true", help="all domains at one moment, all or none")
    parser.add_argument(
        "--level",
        choices=[level.value for level in Level],
        default=Level.AUTO.value,
        help="auto (default): for each disk incremental where there is a trustworthy base, else full",
    )
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help="only these disks")
    parser.add_argument("--exclude-disk", metavar="DEV", nargs="+", action="extend", default=[], help="not these disks")
    parser.add_argument(
        "--quiesce",
        choices=[quiesce.value for quiesce in Quiesce],
        default=Quiesce.AUTO.value,
        help="freeze the guest's filesystems: if an agent answers (auto, default), or fail without",
    )
    parser.add_argument(
        "--freeze-limit",
        metavar="SECONDS",
        type=freeze_limit_s,
        default=DEFAULT_LIMIT_S,
        help=f"thaw the filesystems after this time, whatever happens (default: {DEFAULT_LIMIT_S})",
    )
    _add_how(parser)
    parser.add_argument(
        "--wait-lock", metavar="SECONDS", type=seconds, default=0.0, help="wait for another vbackup to end (default: 0)"
    )
    parser.add_argument(
        "--fleecing",
        metavar="DIR",
        help="put aside there, on a fast local disk, what the guest overwrites, so that it does not wait for the"
        " repository",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, have QEMU check it, keep nothing")
    parser.set_defaults(run=run)


def _add_how(parser: argparse.ArgumentParser) -> None:
    """How fast, and into what."""
    parser.add_argument(
        "--speed", metavar="BYTES/S", type=speed_bytes_s, help="copy each disk no faster (50M, 50MiB/s, 1GB)"
    )
    parser.add_argument(
        "--max-latency",
        metavar="MS",
        type=milliseconds,
        help="copy slower while the guest's own requests take longer than this on average (20, 20ms, 0.5s)",
    )
    parser.add_argument(
        "--total-speed", metavar="BYTES/S", type=speed_bytes_s, help="copy all disks together no faster"
    )
    parser.add_argument(
        "--compress",
        nargs="?",
        choices=[compression.value for compression in Compression],
        default=Compression.NONE.value,
        const=Compression.AUTO.value,
        help="compress the images (default: none; auto, or no word: zstd where QEMU has it)",
    )


def run(options: argparse.Namespace, context: Context) -> int:
    """Back up, or plan and check."""
    words = domains_of(options)
    if options.group and options.parallel is not None:
        raise UsageError("All domains of a group are backed up at once; leave out --parallel, or --group.")
    from vbackup.domain import selection
    from vbackup.domain.host import Host
    from vbackup.operations import backup

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
    repository = context.repository()
    with Host(context.uri) as host:
        if len(words) == 1 and not options.group and selection.is_one(words[0], host):
            return _run_one(request, options, context, host, repository)
        from vbackup.cli import batch

        return batch.run(request, words, options, context, host=host, repository=repository)


def _run_one(
    request: BackupRequest, options: argparse.Namespace, context: Context, host: Host, repository: Repository
) -> int:
    from vbackup.engine import total_rate
    from vbackup.operations import backup

    if options.dry_run:
        with context.reporting() as reporter:
            made = backup.dry_run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
        from vbackup.cli import plans

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
