"""``vbackup cp``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_key_file, add_point, add_words
from vbackup.cli.copies import add_from


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "cp",
        description="Copy files and directories of a guest out of a backup; to '-' as a tar archive on stdout.",
        allow_abbrev=False,
    )
    add_words(
        parser,
        "DOMAIN [WHERE:]/PATH... TARGET",
        "name or UUID of the domain; files or directories in the guest, WHERE: a disk, DISK/PARTITION or VG/LV; and an"
        " existing directory, a new name, or '-'",
    )
    add_common(parser)
    add_from(parser)
    add_point(parser, "copy from", has_id=False)
    add_key_file(parser)
    parser.add_argument("-a", "--archive", action="store_true", help="keep owner, mode and times (owners as root only)")
    parser.add_argument("--tar", action="store_true", help="write a tar archive to stdout; there is no TARGET then")
