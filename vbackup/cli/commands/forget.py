"""``vbackup forget``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive, add_wait_lock


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "forget",
        description="Remove all bitmaps that a repository has on the disks of a domain, running or shut off.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    parser.add_argument("--repository-id", metavar="ID", help="instead of -r: id of a repository that no longer exists")
    add_exclusive(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --repository-id: end a backup to that repository if it is still in QEMU",
    )
    add_wait_lock(parser)
