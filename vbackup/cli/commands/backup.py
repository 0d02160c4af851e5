"""``vbackup backup``: back up a domain, running or off, or several of them (vbackup.cli.batch)."""

from __future__ import annotations

import argparse
import re
from typing import Any

from vbackup.cli.arguments import add_common, add_domains
from vbackup.cli.values import count, milliseconds, seconds, speed_bytes_s
from vbackup.domain.freeze import DEFAULT_LIMIT_S, MAX_LIMIT_S, MIN_LIMIT_S
from vbackup.model import Compression, Level, Quiesce


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "backup",
        description="Back up all disks of a domain, or of several, running or off, as they are at one moment.",
        allow_abbrev=False,
    )
    add_domains(parser)
    add_common(parser)
    parser.add_argument("--parallel", metavar="N", type=count, help="so many domains at the same time (default: 4)")
    parser.add_argument("--group", action="store_true", help="all domains at one moment, all or none")
    parser.add_argument(
        "--level",
        choices=[level.value for level in Level],
        default=Level.AUTO.value,
        help="auto (default): for each disk incremental where there is a trustworthy base, else full",
    )
    parser.add_argument("--disk", metavar="DEV", nargs="+", action="extend", default=[], help="only these disks")
    parser.add_argument("--exclude-disk", metavar="DEV", nargs="+", action="extend", default=[], help="not these disks")
    parser.add_argument(
        "--quiesce",
        choices=[quiesce.value for quiesce in Quiesce],
        default=Quiesce.AUTO.value,
        help="freeze the guest's filesystems: if an agent answers (auto, default), or fail without",
    )
    parser.add_argument(
        "--freeze-limit",
        metavar="SECONDS",
        type=_freeze_limit_s,
        default=DEFAULT_LIMIT_S,
        help=f"thaw the filesystems after this time, whatever happens (default: {DEFAULT_LIMIT_S})",
    )
    _add_how(parser)
    parser.add_argument(
        "--wait-lock", metavar="SECONDS", type=seconds, default=0.0, help="wait for another vbackup to end (default: 0)"
    )
    parser.add_argument(
        "--fleecing",
        metavar="DIR",
        help="put aside there, on a fast local disk, what the guest overwrites, so that it does not wait for the"
        " repository",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, have QEMU check it, keep nothing")


def _add_how(parser: argparse.ArgumentParser) -> None:
    """How fast, and into what."""
    parser.add_argument(
        "--speed", metavar="BYTES/S", type=speed_bytes_s, help="copy each disk no faster (50M, 50MiB/s, 1GB)"
    )
    parser.add_argument(
        "--max-latency",
        metavar="MS",
        type=milliseconds,
        help="copy slower while the guest's own requests take longer than this on average (20, 20ms, 0.5s)",
    )
    parser.add_argument(
        "--total-speed", metavar="BYTES/S", type=speed_bytes_s, help="copy all disks together no faster"
    )
    parser.add_argument(
        "--compress",
        nargs="?",
        choices=[compression.value for compression in Compression],
        default=Compression.NONE.value,
        const=Compression.AUTO.value,
        help="compress the images (default: none; auto, or no word: zstd where QEMU has it)",
    )


def _freeze_limit_s(text: str) -> int:
    """Whole seconds, as many as vbackup.domain.freeze allows."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not MIN_LIMIT_S <= int(text) <= MAX_LIMIT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {MIN_LIMIT_S} to {MAX_LIMIT_S}")
    return int(text)
