"""``vbackup schema``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "schema",
        description="Print the JSON Schema of a document that vbackup prints or keeps, or list all of them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="vbackup.backup/1 or backup (default: a list of all schemas)"
    )
    add_common(parser, asks_libvirt=False)
