"""``vbackup check``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "check",
        description="Look through the repository without reading data: manifests, block lists, tables of images,"
        " chains, leftovers, modes, and what its filesystem can do. 'vbackup verify' reads the data.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="only these domains: names or UUIDs (default: all)"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    add_common(parser)
    parser.add_argument(
        "--repair",
        action="store_true",
        help="repair what can be repaired; what cannot be used is moved to the quarantine, nothing is removed",
    )
    parser.add_argument(
        "--from",
        dest="copies",
        metavar="DIR",
        nargs="+",
        action="extend",
        default=[],
        help="with --repair: copies of the repository, to take damaged parts from",
    )
    parser.add_argument("--dry-run", action="store_true", help="with --repair: only show what would be done")
