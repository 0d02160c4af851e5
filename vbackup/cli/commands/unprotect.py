"""``vbackup unprotect``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_backup_words, add_common, add_wait_lock


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "unprotect",
        description="End the protection of backups: 'vbackup prune' may remove them again.",
        allow_abbrev=False,
    )
    add_backup_words(parser, "[DOMAIN] ID...", "ids of the backups; the domain, if several have backups of these ids")
    add_common(parser)
    add_wait_lock(parser)
