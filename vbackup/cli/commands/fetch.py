"""``vbackup fetch``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common
from vbackup.cli.copies import add_from
from vbackup.cli.values import count, speed_bytes_s


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "fetch",
        description="Make a repository out of a target of copies, in an empty or new directory (-r), or go on with a"
        " fetch that was interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="only these domains: names or UUIDs (default: all)"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    add_common(parser, asks_libvirt=False)
    add_from(parser, required=True)
    parser.add_argument("--bwlimit", metavar="RATE", type=speed_bytes_s, help="limit of the fetching (50M, 50MiB/s)")
    parser.add_argument(
        "--parallel", metavar="N", type=count, help="number of objects of a backup to fetch at once (default: 4)"
    )
