"""``vbackup restore``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_backup, add_common, add_disks, add_domain, add_host
from vbackup.cli.values import directory, timestamp
from vbackup.model import ImageFormat


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "restore",
        description="Write the disks of a backup as DIR/DEV.FORMAT, and a DIR/domain.xml that refers to them.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    which = parser.add_mutually_exclusive_group()
    add_backup(parser, which, "backup to restore (default: the newest)")
    which.add_argument("--at", metavar="TIME", type=timestamp, help="restore the newest backup made at TIME or before")
    add_host(parser)
    add_disks(parser, "restore only these disks")
    parser.add_argument(
        "--mixed", action="store_true", help="restore each disk from its newest backup, whatever moment that is of"
    )
    parser.add_argument(
        "--output", metavar="DIR", required=True, type=directory, help="directory to write to; nothing is overwritten"
    )
    parser.add_argument(
        "--format",
        choices=[image_format.value for image_format in ImageFormat],
        default=ImageFormat.QCOW2.value,
        help="image format (default: qcow2)",
    )
    parser.add_argument(
        "--no-checkpoint",
        action="store_true",
        help="let the next backup of the restored domain be a full, and not an incremental on this backup",
    )
