"""``vbackup report``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_asked, add_common
from vbackup.cli.values import directory


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "report",
        description="Print what 'vbackup status' knows, for people who look at it later, or write it as a page: one"
        " file that needs no network, with the backups of each domain as pictures.",
        allow_abbrev=False,
    )
    add_asked(parser)
    parser.add_argument(
        "--html", metavar="FILE", type=directory, help="write a page to FILE in one step; - is standard output"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=directory,
        help="write text of 80 columns to FILE in one step; - is standard output (the default)",
    )
    add_common(parser, reads_config=True)
