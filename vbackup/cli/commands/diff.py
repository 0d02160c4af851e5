"""``vbackup diff``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_disks, add_domain, add_positional


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "diff",
        description="Show how much of a domain's disks differs between two backups. No image is read.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    add_positional(parser, "before", "A", "the backup to start from", shown_as_required=True)
    add_positional(parser, "after", "B", "the backup to compare it with (default: the newest)", shown_as_required=False)
    add_disks(parser, "compare only these disks")
    parser.add_argument("--extents", action="store_true", help="list the ranges that differ")
