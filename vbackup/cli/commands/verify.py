"""``vbackup verify``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common, add_disks
from vbackup.cli.values import count, percent, speed_bytes_s


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "verify",
        description="Read the images of backups and compare every block with the block lists. Damage is reported with"
        " the backups that it affects, and the result is kept with each backup.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="names or UUIDs of domains, or patterns such as 'web*'"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="verify all domains in the repository")
    add_common(parser)
    parser.add_argument("--backup", metavar="ID", help="only this backup and what it depends on")
    add_disks(parser, "only these disks")
    parser.add_argument(
        "--sample",
        metavar="PERCENT",
        type=percent,
        help="read a random part of the blocks of each image; headers, tables and lists are read as a whole",
    )
    parser.add_argument(
        "--parallel",
        metavar="N",
        type=count,
        help="number of images to read at once (default: 4 or the number of processors, if that is less)",
    )
    parser.add_argument("--speed", metavar="RATE", type=speed_bytes_s, help="limit of the reading (50M, 50MiB/s)")
    parser.add_argument(
        "--force", action="store_true", help="do not go on where a verify was stopped: read everything again"
    )
