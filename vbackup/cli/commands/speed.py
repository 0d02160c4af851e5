"""``vbackup speed``: change how fast a running backup copies."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "speed",
        description="Change the speed of a backup that another vbackup is making of a running domain.",
        allow_abbrev=False,
    )
    add_domain(parser)
    parser.add_argument("rate", metavar="RATE", nargs="?", help="bytes/s of each disk (50M, 50MiB/s, 1GB) or unlimited")
    add_common(parser)
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help="only these disks")
