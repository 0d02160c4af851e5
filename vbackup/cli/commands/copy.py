"""``vbackup copy``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common, add_wait_lock
from vbackup.cli.copies import add_identity, add_recipients, add_take_over
from vbackup.cli.values import chain_length, count, speed_bytes_s, timestamp


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "copy",
        description="Copy backups to a target, which is a directory or a URL: those that are newer than what is there,"
        " each as it is if the target has what it depends on.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="names or UUIDs of domains, or patterns such as 'web*'"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="copy the backups of all domains in the repository")
    add_common(parser)
    parser.add_argument(
        "--to", metavar="TARGET", required=True, help="where to: a directory or a URL; an empty one becomes a target"
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=timestamp,
        help="copy all backups made at TIME or later that are not there (default: those newer than the newest there)",
    )
    parser.add_argument(
        "--full-every",
        metavar="N",
        type=chain_length,
        help="let no image at the target have a chain of more than N images: then a full goes there",
    )
    parser.add_argument("--bwlimit", metavar="RATE", type=speed_bytes_s, help="limit of the sending (50M, 50MiB/s)")
    parser.add_argument(
        "--parallel", metavar="N", type=count, help="number of objects of a backup to send at once (default: 4)"
    )
    add_recipients(parser)
    add_identity(parser)
    parser.add_argument(
        "--rewrap",
        action="store_true",
        help="copy nothing, but let the recipients read all that is at the target; needs --identity, and no repository",
    )
    parser.add_argument(
        "--immutable",
        metavar="DAYS",
        type=count,
        help="in a directory: let nobody change or remove backups there for so many days after they were copied",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be copied")
    add_take_over(parser)
    add_wait_lock(parser)
