"""``vbackup verify``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.cli.arguments import add_common, add_disks
from vbackup.cli.copies import add_from
from vbackup.cli.values import (
    console_pattern,
    count,
    guest_command,
    memory_bytes,
    percent,
    positive_seconds,
    speed_bytes_s,
)


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "verify",
        description="Read the images of backups and compare every block with the block lists. Damage is reported with"
        " the backups that it affects, and the result is kept with each backup. With --boot, boot a copy of the domain"
        " instead, without a network, and throw away what it writes; with --fsck, check its file systems.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="names or UUIDs of domains, or patterns such as 'web*'"
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="verify all domains in the repository")
    add_common(parser)
    add_from(parser)
    parser.add_argument("--backup", metavar="ID", help="only this backup and what it depends on")
    add_disks(parser, "only these disks")
    parser.add_argument(
        "--sample",
        metavar="PERCENT",
        type=percent,
        help="read a random part of the blocks of each image; headers, tables and lists are read as a whole. With"
        " --from: read random objects until this part of all bytes is read",
    )
    parser.add_argument(
        "--parallel",
        metavar="N",
        type=count,
        help="number of images to read at once (default: 4 or the number of processors, if that is less)",
    )
    parser.add_argument("--speed", metavar="RATE", type=speed_bytes_s, help="limit of the reading (50M, 50MiB/s)")
    parser.add_argument(
        "--force", action="store_true", help="do not go on where a verify was stopped: read everything again"
    )
    _add_boot(parser)
    parser.add_argument(
        "--fsck",
        action="store_true",
        help="check the file systems of the newest backup, or of --backup, in libguestfs's appliance",
    )


def _add_boot(parser: argparse.ArgumentParser) -> None:
    """Add the options of a boot test."""
    parser.add_argument(
        "--boot",
        action="store_true",
        help="boot a copy of the newest backup, or of --backup, and see that its guest agent answers, or its screen is"
        " in use if it has no agent",
    )
    parser.add_argument(
        "--boot-exec",
        metavar="COMMAND",
        type=guest_command,
        help="with --boot: the guest agent runs this command in the guest, which has to exit with status 0",
    )
    parser.add_argument(
        "--boot-console",
        metavar="PATTERN",
        type=console_pattern,
        help="with --boot: this regular expression has to match what is written to the serial console",
    )
    parser.add_argument(
        "--boot-screen",
        action="store_true",
        help="with --boot: the screen has to be in use, whatever else is asked for",
    )
    parser.add_argument(
        "--boot-timeout", metavar="TIME", type=positive_seconds, help="with --boot: how long it may take (default: 5m)"
    )
    parser.add_argument(
        "--boot-memory",
        metavar="SIZE",
        type=memory_bytes,
        help="with --boot: memory of the copy, if that is less than the domain's (default: 2G)",
    )
