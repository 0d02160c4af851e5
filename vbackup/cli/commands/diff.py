"""``vbackup diff``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import ShownAsRequired, add_common, add_disks


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "diff",
        description="Show how much of a domain's disks differs between two backups. No image is read.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        metavar="[DOMAIN] A [B]",
        nargs="*",
        action=ShownAsRequired,
        help="ids of the backup to start from, and of the one to compare it with (default: the newest); the domain, if"
        " several have a backup A",
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    add_common(parser)
    add_disks(parser, "compare only these disks")
    parser.add_argument("--extents", action="store_true", help="list the ranges that differ")
