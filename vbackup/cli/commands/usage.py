"""``vbackup usage``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "usage",
        description="Show how much room backups take, and what pruning each of them would free.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="names or UUIDs of domains (default: a summary of all)"
    )
    add_common(parser, asks_libvirt=False)
    parser.add_argument("--all", action="store_true", help="show the backups of all domains")
