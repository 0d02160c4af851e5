"""``vbackup umount``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common
from vbackup.cli.values import directory


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "umount",
        description="End 'vbackup mount DIR', or remove what it has left if it was killed.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", type=directory, help="directory in which a backup is mounted")
    add_common(parser, asks_libvirt=False)
    parser.add_argument(
        "--force", action="store_true", help="also while somebody reads one of the disks, who gets errors then"
    )
