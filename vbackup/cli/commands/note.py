"""``vbackup note``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_backup_words, add_common, add_wait_lock


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "note",
        description="Give a backup a note: a line of text for people, in place of the one that it has.",
        allow_abbrev=False,
    )
    add_backup_words(
        parser,
        "[DOMAIN] ID TEXT",
        "id of the backup, and its new note ('' removes it); the domain, if several have a backup of this id",
    )
    add_common(parser)
    add_wait_lock(parser)
