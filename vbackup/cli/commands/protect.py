"""``vbackup protect``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_backup_words, add_common, add_wait_lock
from vbackup.cli.values import count, note


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "protect",
        description="Protect backups: 'vbackup prune' never removes them, and its rules do not count them.",
        allow_abbrev=False,
    )
    add_backup_words(parser, "[DOMAIN] ID...", "ids of the backups; the domain, if several have backups of these ids")
    add_common(parser)
    parser.add_argument("--reason", metavar="TEXT", type=note, help="why, for people: a line of text")
    parser.add_argument(
        "--immutable",
        metavar="DAYS",
        type=count,
        help="instead, make the files of the backups, and of those that they depend on, immutable for so many days",
    )
    add_wait_lock(parser)
