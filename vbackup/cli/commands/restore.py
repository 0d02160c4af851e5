"""``vbackup restore``: write a backup's disks and domain XML into a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbackup.cli.arguments import add_common, add_domain
from vbackup.cli.values import timestamp
from vbackup.model import ImageFormat


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "restore",
        description="Write the disks of a backup as DIR/DEV.FORMAT, and DIR/domain.xml that points to them.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--backup", metavar="ID", help="this one (default: the newest)")
    which.add_argument("--at", metavar="TIME", type=timestamp, help="the newest made at TIME or before")
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help="only these disks")
    parser.add_argument("--output", metavar="DIR", required=True, type=Path, help="where to; nothing is overwritten")
    parser.add_argument(
        "--format",
        choices=[image_format.value for image_format in ImageFormat],
        default=ImageFormat.QCOW2.value,
        help="of the images (default: qcow2)",
    )
