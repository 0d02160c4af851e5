"""``vbackup recover``: finish or undo what a run that has died has left."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "recover",
        description="Finish the backups whose jobs are still in QEMU, and undo the others that were cut off.",
        allow_abbrev=False,
    )
    add_domain(parser, required=False)
    add_common(parser)
    parser.add_argument("--all", action="store_true", help="of all domains in the repository")
    parser.add_argument("--abort", action="store_true", help="finish none, undo all")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
