"""Arguments of how the backup of a domain is made, wherever it goes: to a repository, or to a stream."""

from __future__ import annotations

import argparse
from pathlib import Path

from vbackup.cli.arguments import add_devs, add_disks, add_exclusive, add_quiesce, add_wait_lock
from vbackup.cli.values import directory, milliseconds, speed_bytes_s
from vbackup.model import MAX_MEDIUM_BYTES, Compression, Transport

#: Where stages are by default: the records of what was streamed, and room for one backup of each domain at a time.
STAGE = Path("/var/lib/vbackup/streams")


def add_making(parser: argparse.ArgumentParser) -> None:
    """Add how the backup of a domain is made, wherever it goes."""
    add_disks(parser, "back up only these disks")
    add_devs(parser, "--exclude-disk", "do not back up these disks")
    add_exclusive(parser)
    add_quiesce(parser)
    _add_copying(parser)
    add_wait_lock(parser)
    parser.add_argument(
        "--fleecing",
        metavar="DIR",
        type=directory,
        help="save data in DIR, on a fast disk of the domain's host, before the guest overwrites it: the guest does not"
        " wait for the repository (default for data that comes by SSH: /var/tmp)",
    )
    parser.add_argument(
        "--no-fleecing", action="store_true", help="let the guest wait for the network, where data comes by SSH"
    )
    parser.add_argument(
        "--transport",
        choices=[transport.value for transport in Transport],
        default=Transport.AUTO.value,
        help="how the data comes here from another host: ssh; path: its QEMU writes to storage that both hosts have at"
        " the same path; auto (default): path if the repository is there, otherwise ssh",
    )
    parser.add_argument(
        "--with-media",
        action="store_true",
        help="back up the media in CD-ROM and floppy drives too, such as seeds of cloud-init: raw image files of up to"
        f" {MAX_MEDIUM_BYTES // 1024**2} MiB",
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


def add_stage(parser: argparse.ArgumentParser) -> None:
    """Add --stage."""
    parser.add_argument(
        "--stage",
        metavar="DIR",
        type=directory,
        default=STAGE,
        help="directory in which backups are made before they are sent, and the record of those that were sent"
        f" (default: {STAGE})",
    )


def add_log(parser: argparse.ArgumentParser, default: str = "stderr") -> None:
    """Add --log."""
    parser.add_argument(
        "--log", metavar="FILE", type=directory, help=f"write messages to the end of this file (default: {default})"
    )
