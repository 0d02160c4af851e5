"""``vbackup recover``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "recover",
        description="Finish interrupted backups whose jobs are still in QEMU or whose images are complete, and undo"
        " the others.",
        allow_abbrev=False,
    )
    add_domain(parser, otherwise=" (or give --all)")
    add_common(parser)
    parser.add_argument("--all", action="store_true", help="recover all domains in the repository")
    parser.add_argument("--abort", action="store_true", help="undo all interrupted backups, finish none")
    add_exclusive(parser)
    parser.add_argument(
        "--adopt",
        action="store_true",
        help="give a copy of a repository a new id, and discard the unfinished backups that were copied",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="recover backups of a vbackup on another host that was at work a moment ago: it is dead",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
