"""Arguments that several commands share, and the types that argument texts become."""

from __future__ import annotations

import argparse
import math
import os
import re
from datetime import datetime, timezone
from typing import Any

from vbackup.errors import UsageError
from vbackup.fields import MAX_SIZE_BYTES

#: As virsh reads sizes: k, KiB = 1024 bytes; KB = 1000.
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgtpe", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
#: A year: longer than anybody waits, and no more than the operating system can count.
MAX_WAIT_S = 365 * 24 * 3600
#: Of a guest's request; after 30 s guests take their disk for broken.
MIN_LATENCY_MS, MAX_LATENCY_MS = 0.1, 60_000.0
#: Of threads; more only costs memory.
MAX_COUNT = 1000
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[a-z]*)(/s)?", re.IGNORECASE | re.ASCII)


def add_common(parser: argparse.ArgumentParser, *, at_top: bool = False) -> None:
    """The options of every command; they may stand before or behind its name."""

    def default(value: Any) -> Any:
        return value if at_top else argparse.SUPPRESS

    parser.add_argument(
        "-c", "--connect", metavar="URI", default=default(None), help="libvirt URI (default: LIBVIRT_DEFAULT_URI)"
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument(
        "-q", "--quiet", action="store_true", default=default(False), help="only the result, warnings and errors"
    )
    loudness.add_argument(
        "-v", "--verbose", action="store_true", default=default(False), help="every QMP command and reply, on stderr"
    )
    if at_top:
        return
    parser.add_argument(
        "-r",
        "--repository",
        metavar="DIR",
        default=os.environ.get("VBACKUP_REPOSITORY"),
        help="the repository (default: VBACKUP_REPOSITORY)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default="auto",
        help="bars on a terminal, log lines elsewhere; one JSON event a line on stderr; nothing",
    )


def add_domain(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The domain, by position or with --domain as in virsh."""
    parser.add_argument(
        "domain", metavar="DOMAIN", nargs="?", help="name or UUID" + ("" if required else " (default: all)")
    )
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)


def add_domains(parser: argparse.ArgumentParser) -> None:
    """One domain or several, as words or all there are; see vbackup.domain.selection."""
    parser.add_argument("domains", metavar="DOMAIN", nargs="*", help="names, UUIDs, or patterns such as 'web*'")
    parser.add_argument("--domain", metavar="DOMAIN", dest="domain_option", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="all domains that can be backed up")
    parser.add_argument(
        "--exclude", metavar="PATTERN", nargs="+", action="extend", default=[], help="with --all: not these domains"
    )


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """Which QEMU: a domain's, one behind a QMP socket, or a storage daemon on image files."""
    add_domain(parser)
    parser.add_argument("--socket", metavar="PATH", help="instead of a domain: a QMP socket of a QEMU without libvirt")
    parser.add_argument(
        "--image",
        metavar="[raw:]FILE",
        nargs="+",
        action="extend",
        default=[],
        help="instead of a domain: image files that nothing has open, called vda, vdb, ... in this order",
    )


def granularity_bytes(text: str) -> int:
    """A power of two from 512 bytes to 2 GiB, with units as for rates; what QEMU takes."""
    size = _size_bytes(text)
    if size is None or size not in [2**power for power in range(9, 32)]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two from 512 to 2G")
    return size


def _size_bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        return None
    # A number too long for a float is infinite, and too much for everybody.
    return int(min(float(match["number"]) * factor, MAX_SIZE_BYTES + 1))


def speed_bytes_s(text: str) -> int:
    """A rate like 50M, 50MiB/s, 1.5GB/s or plain bytes a second, as bytes a second."""
    rate = _size_bytes(text)
    if rate is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate like 50M, 50MiB/s or 1000000")
    if not 1 <= rate <= MAX_SIZE_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 byte a second and what QEMU can count")
    return rate


def new_speed(text: str) -> int | None:
    """A rate as ``speed_bytes_s``, or ``unlimited`` for None. Raises UsageError: it is no option's argument."""
    if text == "unlimited":
        return None
    try:
        return speed_bytes_s(text)
    except argparse.ArgumentTypeError as err:
        raise UsageError(f"{err}, nor 'unlimited'.") from err


def milliseconds(text: str) -> float:
    """A time like 20, 20ms, 500us or 0.5s, as milliseconds; from 0.1 ms to a minute."""
    match = re.fullmatch(r"(?P<number>\d{1,9}(\.\d{1,9})?)\s*(?P<unit>us|ms|s|)", text.strip(), re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 20ms, 500us or 0.5s")
    value = float(match["number"]) * {"us": 0.001, "ms": 1, "s": 1000, "": 1}[match["unit"]]
    if not MIN_LATENCY_MS <= value <= MAX_LATENCY_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0.1ms and 60s")
    return value


def freeze_limit_s(text: str) -> int:
    """Whole seconds, as many as vbackup.domain.freeze allows."""
    from vbackup.domain.freeze import MAX_LIMIT_S, MIN_LIMIT_S

    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not MIN_LIMIT_S <= int(text) <= MAX_LIMIT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {MIN_LIMIT_S} to {MAX_LIMIT_S}")
    return int(text)


def count(text: str) -> int:
    """How many at once, 1 to 1000."""
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_COUNT}")
    return int(text)


def seconds(text: str) -> float:
    """A time to wait, up to a year."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_WAIT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {MAX_WAIT_S}")
    return value


def time(text: str) -> datetime:
    """ISO 8601, or as in backup ids (20261123T101500Z); local time where no offset is given."""
    text = text.strip()
    compact = re.fullmatch(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(Z?)", text, re.ASCII)
    if compact:
        year, month, day, hour, minute, second, zone = compact.groups()
        text = f"{year}-{month}-{day}T{hour}:{minute}:{second}{zone}"
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time like 2026-11-23T10:15:00Z, '2026-11-23 10:15' or 20261123T101500Z"
        ) from None
