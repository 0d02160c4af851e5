"""``vbackup backup``: its arguments."""

from __future__ import annotations

from typing import Any

from vbackup.cli.arguments import add_common, add_domains, add_scripts
from vbackup.cli.making import add_making
from vbackup.cli.values import age_s, count, directory, note, speed_bytes_s, timestamp
from vbackup.model import Level


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "backup",
        description="Back up all disks of one or more domains, running or shut off. All disks of a domain are backed up"
        " at the same moment.",
        allow_abbrev=False,
    )
    add_domains(parser)
    add_common(parser, of_hosts=True)
    parser.add_argument(
        "--hosts", metavar="FILE", type=directory, help="back up domains of the hosts in FILE, one libvirt URI a line"
    )
    parser.add_argument("--parallel", metavar="N", type=count, help="number of domains to back up at once (default: 4)")
    parser.add_argument(
        "--parallel-per-host",
        metavar="N",
        type=count,
        help="number of domains of each host to back up at once (default: as many as on all together)",
    )
    parser.add_argument("--group", action="store_true", help="back up all domains at the same moment, all or none")
    parser.add_argument(
        "--level",
        choices=[level.value for level in Level],
        default=Level.AUTO.value,
        help="how much to copy; auto (default): incremental for each disk that has a trustworthy base, otherwise full;"
        " incremental: what changed since the newest backup; differential: what changed since the last full; full: the"
        " whole disk; copy: the whole disk, outside the chain",
    )
    parser.add_argument(
        "--full-every",
        metavar="DURATION",
        type=age_s,
        help="with level auto: make a full backup when the newest full one is older than this (30d, 4w, 26h)",
    )
    add_making(parser)
    add_scripts(parser)
    parser.add_argument(
        "--total-speed",
        metavar="BYTES/S",
        type=speed_bytes_s,
        help="limit the copy speed of all disks of all domains together",
    )
    parser.add_argument(
        "--note", metavar="TEXT", type=note, help="a line of text for people, which list and show print with the backup"
    )
    parser.add_argument(
        "--until",
        metavar="TIME",
        type=timestamp,
        help="begin no backup of a domain at this time or later; those that have begun go on",
    )
    parser.add_argument(
        "--strict", action="store_true", help="if a pattern matches no domain, back up nothing: exit status 2"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and let QEMU check it; keep nothing")
