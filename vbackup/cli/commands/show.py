"""``vbackup show``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_backup, add_common, add_domain
from vbackup.cli.copies import add_from


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "show",
        description="Show the record of a backup, and the chain of backups that each of its disks depends on.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    add_from(parser)
    add_backup(parser, parser, "backup to show (default: the newest)")
