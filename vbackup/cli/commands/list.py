"""``vbackup list``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "list", description="List the backups in a repository, oldest first.", allow_abbrev=False
    )
    add_domain(parser, otherwise=" (default: all)")
    add_common(parser)
    parser.add_argument("--tree", action="store_true", help="show which backup depends on which")
