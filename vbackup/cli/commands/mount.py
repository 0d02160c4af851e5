"""``vbackup mount``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import ShownAsRequired, add_common, add_point
from vbackup.cli.copies import add_from


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "mount",
        description="Show the disks of a backup as raw files DIR/DEV.raw, read-only, until 'vbackup umount DIR'.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        metavar="DOMAIN [ID] DIR",
        nargs="*",
        action=ShownAsRequired,
        help="name or UUID of the domain, the same as --backup ID, and an empty directory, which is created if its"
        " parent is there",
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    add_common(parser)
    add_from(parser)
    add_point(parser, "mount", has_id=False)
    parser.add_argument(
        "--foreground", action="store_true", help="stay in the foreground until a signal ends it, or 'vbackup umount'"
    )
