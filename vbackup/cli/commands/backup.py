"""``vbackup backup``: back up a domain, running or off."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup import manifest
from vbackup.cli import output
from vbackup.cli.arguments import add_common, add_domain, freeze_limit_s, milliseconds, seconds, speed_bytes_s
from vbackup.cli.context import Context, domain_of
from vbackup.errors import Status
from vbackup.freeze import DEFAULT_LIMIT_S
from vbackup.model import Backup, Compression, Level, Quiesce

if TYPE_CHECKING:
    from vbackup.plan import BackupPlan


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "backup",
        description="Back up all disks of a domain, running or off, as they are at one moment.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
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
        "--compress",
        nargs="?",
        choices=[compression.value for compression in Compression],
        default=Compression.NONE.value,
        const=Compression.AUTO.value,
        help="compress the images (default: none; auto, or no word: zstd where QEMU has it)",
    )
    parser.add_argument(
        "--wait-lock", metavar="SECONDS", type=seconds, default=0.0, help="wait for another vbackup to end (default: 0)"
    )
    parser.add_argument(
        "--staging",
        metavar="DIR",
        help="put aside there, on a fast local disk, what the guest overwrites, so that it does not wait for the"
        " repository",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, have QEMU check it, keep nothing")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, context: Context) -> int:
    """Back up, or plan and check."""
    from vbackup import backup
    from vbackup.host import Host

    request = backup.BackupRequest(
        domain=domain_of(options),
        level=Level(options.level),
        disks=tuple(options.disk),
        excluded_disks=tuple(options.exclude_disk),
        quiesce=Quiesce(options.quiesce),
        freeze_limit_s=options.freeze_limit,
        speed_bytes_s=options.speed,
        max_latency_ms=options.max_latency,
        compression=Compression(options.compress),
        wait_lock_s=options.wait_lock,
        staging=Path(options.staging) if options.staging else None,
    )
    repository = context.repository()
    with Host(context.uri) as host:
        if options.dry_run:
            with context.reporting() as reporter:
                made = backup.dry_run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
            _print_plan(made, context)
        else:
            with context.reporting() as reporter:
                done = backup.run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
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


def _print_plan(made: BackupPlan, context: Context) -> None:
    transaction = made.transaction()
    if context.as_json:
        context.print_document("vbackup.plan/1", _plan_document(made, transaction))
        return
    print(f"Plan of backup {made.id} of domain {made.domain.name} (checked by QEMU, nothing was kept)")
    output.table(
        ("DISK", "LEVEL", "BASE", "FILE", "NODE", "WHY"),
        [
            (
                disk.dev,
                disk.choice.level.value,
                disk.choice.base.id if disk.choice.base else "-",
                disk.file,
                disk.node.top.node_name,
                disk.choice.reason,
            )
            for disk in made.disks
        ],
    )
    for left in made.left_out:
        print(output.plain(f"Left out: {left.dev} ({left.reason})"))
    print("Transaction:")
    for action in transaction:
        print(f"  {json.dumps(action)}")
    if made.is_staged:
        print("Then, to copy what was put aside and the rest:")
        for action in made.copies():
            print(f"  {json.dumps(action)}")


def _plan_document(made: BackupPlan, transaction: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": made.id,
        "level": made.level.value,
        "parent": made.parent,
        "domain": {"name": made.domain.name, "uuid": made.domain.uuid},
        "disks": [
            {
                "dev": disk.dev,
                "level": disk.choice.level.value,
                "base": disk.choice.base.id if disk.choice.base else None,
                "reason": disk.choice.reason,
                "file": disk.file,
                "backing_file": disk.backing_rpath,
                "virtual_size_bytes": disk.node.top.virtual_size_bytes,
                "node_name": disk.node.top.node_name,
                "bitmap": disk.bitmap,
                "working_bitmap": disk.working_bitmap,
            }
            for disk in made.disks
        ],
        "left_out": [{"dev": left.dev, "reason": left.reason} for left in made.left_out],
        "transaction": transaction,
        "copies": made.copies(),
    }
