"""``vbackup restore``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive, add_point, add_wait_lock
from vbackup.cli.values import directory, speed_bytes_s
from vbackup.model import ImageFormat


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "restore",
        description="Write the disks of a backup as DIR/DEV.FORMAT, and a DIR/domain.xml that refers to them, or roll"
        " the disks of a domain that is off back to a backup.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    add_point(parser, "restore", has_id=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", metavar="DIR", type=directory, help="directory to write to; nothing is overwritten")
    where.add_argument(
        "--in-place",
        action="store_true",
        help="roll the domain's own disks back, while it is off, by writing only what differs",
    )
    parser.add_argument(
        "--format",
        choices=[image_format.value for image_format in ImageFormat],
        help="image format (default: qcow2)",
    )
    parser.add_argument(
        "--speed",
        metavar="BYTES/S",
        type=speed_bytes_s,
        help="with --in-place: limit the copy speed of each disk (50M, 50MiB/s, 1GB)",
    )
    add_exclusive(parser)
    add_wait_lock(parser)
    parser.add_argument(
        "--no-checkpoint",
        action="store_true",
        help="do not let the next backup start from this one: after --output it is a full, after --in-place an"
        " incremental on the newest",
    )
