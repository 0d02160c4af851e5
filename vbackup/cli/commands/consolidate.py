"""``vbackup consolidate``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.api import Way
from vbackup.cli.arguments import add_backup, add_common, add_domain
from vbackup.cli.values import count, speed_bytes_s


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "consolidate",
        description="Make backups independent of older ones, without reading the domain; all backups stay.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    which = parser.add_mutually_exclusive_group()
    add_backup(parser, which, "backup that becomes a full (with --full)")
    parser.add_argument("--full", action="store_true", help="make backup ID a full: it needs no other backup any more")
    parser.add_argument(
        "--max-chain", metavar="N", type=count, help="make fulls so that no disk of a backup needs more than N images"
    )
    add_way(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")


def add_way(parser: Any) -> None:
    """Add --consolidate and --speed, for commands that merge images."""
    parser.add_argument(
        "--consolidate",
        metavar="WAY",
        choices=[way.value for way in Way],
        default=Way.AUTO.value,
        help="how the images of backups are merged: auto (default), reflink, in-place, copy, or never",
    )
    parser.add_argument(
        "--speed", metavar="RATE", type=speed_bytes_s, help="merge at most this much per second (50M, 1GiB/s)"
    )
