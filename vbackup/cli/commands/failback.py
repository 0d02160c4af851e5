"""``vbackup failback``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive, add_wait_lock
from vbackup.cli.values import speed_bytes_s


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "failback",
        description="Bring a domain back from its standby, which has taken over, to the original: back up the standby,"
        " and roll the original's disks back to that backup by writing only what differs. Both are off.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    parser.add_argument(
        "--from",
        metavar="HOST",
        dest="standby",
        required=True,
        help="URI of the libvirt that has the standby; -c is that of the original",
    )
    parser.add_argument("--start", action="store_true", help="start the original")
    parser.add_argument(
        "--speed",
        metavar="BYTES/S",
        type=speed_bytes_s,
        help="limit the copy speed of each disk (50M, 50MiB/s, 1GB)",
    )
    add_exclusive(parser)
    add_wait_lock(parser)
