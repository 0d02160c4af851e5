"""``vbackup replicate``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domain, add_exclusive, add_host, add_wait_lock
from vbackup.cli.values import directory, speed_bytes_s


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "replicate",
        description="Keep a standby of a domain at the libvirt of another host: apply the newest backup to stopped"
        " images there, by writing only what differs. The domain is defined there, with the links of its network"
        " interfaces down; 'vbackup failover' lets it take over.",
        allow_abbrev=False,
    )
    add_domain(parser, otherwise="; with --status, all domains without one")
    add_common(parser)
    parser.add_argument("--to", metavar="HOST", help="URI of the libvirt that has the standby")
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=directory,
        help="the first time: directory for the images of the standby, on its host",
    )
    parser.add_argument("--backup", metavar="ID", help="apply this backup (default: the newest)")
    add_host(parser)
    parser.add_argument(
        "--status", action="store_true", help="show the standbys, and how many backups each of them is behind"
    )
    parser.add_argument(
        "--speed",
        metavar="BYTES/S",
        type=speed_bytes_s,
        help="limit the copy speed of each disk (50M, 50MiB/s, 1GB)",
    )
    add_exclusive(parser)
    add_wait_lock(parser)
