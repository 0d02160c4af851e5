"""``vbackup list``: the backups in a repository, as a table or as the tree they stand on each other in."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "list", description="List the backups in a repository, oldest first.", allow_abbrev=False
    )
    add_domain(parser, required=False)
    add_common(parser)
    parser.add_argument("--tree", action="store_true", help="show which backup stands on which")
