"""``vbackup show``: everything that is recorded of one backup."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "show",
        description="Show what is recorded of a backup, and the images each of its disks stands on.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    parser.add_argument("--backup", metavar="ID", help="this one (default: the newest)")
