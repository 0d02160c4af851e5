"""``vbackup backup``: its arguments."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import DEFAULT_FREEZE_LIMIT_S, MAX_FREEZE_LIMIT_S, MIN_FREEZE_LIMIT_S
from vbackup.cli.arguments import add_common, add_devs, add_disks, add_domains, add_exclusive, add_wait_lock
from vbackup.cli.values import count, directory, duration_s, milliseconds, note, speed_bytes_s
from vbackup.model import MAX_MEDIUM_BYTES, Compression, Level, Quiesce


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "backup",
        description="Back up all disks of one or more domains, running or shut off. All disks of a domain are backed up"
        " at the same moment.",
        allow_abbrev=False,
    )
    add_domains(parser)
    add_common(parser)
    parser.add_argument("--parallel", metavar="N", type=count, help="number of domains to back up at once (default: 4)")
    parser.add_argument("--group", action="store_true", help="back up all domains at the same moment, all or none")
    parser.add_argument(
        "--level",
        choices=[level.value for level in Level],
        default=Level.AUTO.value,
        help="how much to copy; auto (default): incremental for each disk that has a trustworthy base, otherwise full;"
        " incremental: what changed since the newest backup; differential: what changed since the last full; full: the"
        " whole disk; copy: the whole disk, outside the chain",
    )
    add_disks(parser, "back up only these disks")
    add_devs(parser, "--exclude-disk", "do not back up these disks")
    add_exclusive(parser)
    _add_quiesce(parser)
    _add_copying(parser)
    add_wait_lock(parser)
    parser.add_argument(
        "--fleecing",
        metavar="DIR",
        type=directory,
        help="save data in DIR, on a fast disk of the domain's host, before the guest overwrites it: the guest does not"
        " wait for the repository",
    )
    parser.add_argument(
        "--note", metavar="TEXT", type=note, help="a line of text for people, which list and show print with the backup"
    )
    parser.add_argument(
        "--with-media",
        action="store_true",
        help="back up the media in CD-ROM and floppy drives too, such as seeds of cloud-init: raw image files of up to"
        f" {MAX_MEDIUM_BYTES // 1024**2} MiB",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and let QEMU check it; keep nothing")


def _add_quiesce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quiesce",
        choices=[quiesce.value for quiesce in Quiesce],
        default=Quiesce.AUTO.value,
        help="freeze the guest's filesystems; auto (default): if its agent answers; required: fail if it does not;"
        " no: never",
    )
    parser.add_argument(
        "--freeze-limit",
        metavar="TIME",
        type=_freeze_limit_s,
        default=DEFAULT_FREEZE_LIMIT_S,
        help=f"thaw the filesystems after this time (20, 20s, 1m) in any case (default: {DEFAULT_FREEZE_LIMIT_S}s)",
    )


def _add_copying(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed", metavar="BYTES/S", type=speed_bytes_s, help="limit the copy speed of each disk (50M, 50MiB/s, 1GB)"
    )
    parser.add_argument(
        "--max-latency",
        metavar="TIME",
        type=milliseconds,
        help="copy more slowly while the guest's own requests take longer than this on average (20, 20ms, 0.5s)",
    )
    parser.add_argument(
        "--total-speed",
        metavar="BYTES/S",
        type=speed_bytes_s,
        help="limit the copy speed of all disks of all domains together",
    )
    parser.add_argument(
        "--compress",
        nargs="?",
        choices=[compression.value for compression in Compression],
        default=Compression.NONE.value,
        const=Compression.AUTO.value,
        help="compress the images (default: none; auto, or no value: zstd if QEMU has it, otherwise zlib)",
    )
    parser.add_argument(
        "--allow-reflink",
        action="store_true",
        help="let images share data with the disks, where both are on one filesystem that can do that (XFS, btrfs):"
        " quick, and takes no space, but a bad block then hits both",
    )


def _freeze_limit_s(text: str) -> int:
    """Return whole seconds within the limits of vbackup.domain.freeze."""
    limit_s = duration_s(text)
    if limit_s is None or not MIN_FREEZE_LIMIT_S <= limit_s <= MAX_FREEZE_LIMIT_S or limit_s != int(limit_s):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of seconds from {MIN_FREEZE_LIMIT_S} to {MAX_FREEZE_LIMIT_S}, like 20, 20s"
            " or 1m"
        )
    return int(limit_s)
