"""``vbackup speed``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_disks, add_domain


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "speed",
        description="Change the copy speed of a backup of a running domain while it is in progress.",
        allow_abbrev=False,
    )
    add_domain(parser)
    parser.add_argument(
        "rate", metavar="RATE", nargs="?", help="bytes per second for each disk (50M, 50MiB/s, 1GB), or unlimited"
    )
    add_common(parser)
    add_disks(parser, "change only these disks")
