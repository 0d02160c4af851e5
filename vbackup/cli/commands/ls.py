"""``vbackup ls``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_key_file, add_point, add_words
from vbackup.cli.copies import add_from


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "ls",
        description="List a directory of a guest as it is in a backup; without a path, its file systems.",
        allow_abbrev=False,
    )
    add_words(
        parser,
        "DOMAIN [[WHERE:]/PATH]",
        "name or UUID of the domain; a path in the guest, WHERE: a disk, DISK/PARTITION or VG/LV",
    )
    add_common(parser)
    add_from(parser)
    add_point(parser, "look into", has_id=False)
    add_key_file(parser)
    parser.add_argument("-R", "--recursive", action="store_true", help="list all that is below the directory, too")
    parser.add_argument("--bytes", action="store_true", help="sizes in bytes")
