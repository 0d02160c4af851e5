"""``vbackup audit``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_disks, add_domain, add_exclusive, add_wait_lock
from vbackup.cli.values import directory, milliseconds, percent, speed_bytes_s


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "audit",
        description="Read a random part of what has not changed since the newest backup, as the bitmaps say, from the"
        " disks of a domain, running or shut off, and compare it with the backup's block lists.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    add_disks(parser, "audit only these disks")
    parser.add_argument(
        "--sample",
        metavar="PERCENT",
        type=percent,
        default=1.0,
        help="how much of it to read (default: 1; at least 16 MiB of each disk)",
    )
    parser.add_argument(
        "--max-latency",
        metavar="TIME",
        type=milliseconds,
        help="read more slowly while the guest's own requests take longer than this on average (20, 20ms, 0.5s)",
    )
    parser.add_argument(
        "--speed", metavar="BYTES/S", type=speed_bytes_s, help="limit the reading of each disk (50M, 50MiB/s, 1GB)"
    )
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        type=directory,
        help="directory for what is read until it is compared (default: in the repository)",
    )
    add_exclusive(parser)
    add_wait_lock(parser)
