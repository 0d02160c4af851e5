"""The values that argument texts become; vbackup.config.values has the grammar that the configuration shares."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from vbackup import names
from vbackup.api import Duration
from vbackup.config import times
from vbackup.config import values as grammar
from vbackup.config.calendar import Window
from vbackup.errors import UsageError
from vbackup.fields import MAX_SIZE_BYTES

#: Most extents of one answer.
MAX_RESULTS = 1_000_000
#: libvirt writes a definition to NAME.xml.new first, and a file name has 255 bytes.
MAX_NAME_BYTES = 255 - len(".xml.new")


_Value = TypeVar("_Value")


def _argument(read: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Return the function with its errors as argparse prints them: with their text."""

    @functools.wraps(read)
    def argument(text: str) -> _Value:
        try:
            return read(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from None

    return argument


absolute_directory = _argument(grammar.absolute_directory)
age_s = _argument(grammar.age_s)
console_pattern = _argument(grammar.console_pattern)
count = _argument(grammar.count)
freeze_limit_s = _argument(grammar.freeze_limit_s)
guest_command = _argument(grammar.guest_command)
host_and_port = _argument(grammar.host_and_port)
host_and_ports = _argument(grammar.host_and_ports)
keep_count = _argument(grammar.keep_count)
memory_bytes = _argument(grammar.memory_bytes)
milliseconds = _argument(grammar.milliseconds)
note = _argument(grammar.note)
percent = _argument(grammar.percent)
positive_seconds = _argument(grammar.positive_seconds)
seconds = _argument(grammar.seconds)
speed_bytes_s = _argument(grammar.speed_bytes_s)
_keep_within = _argument(grammar.keep_within)
_window = _argument(times.window)


def window(text: str) -> tuple[Window | None]:
    """Return a window of the day such as 22:00-06:00, in a tuple; None for "any"."""
    return (None if text == "any" else _window(text),)


def directory(text: str) -> Path:
    """Return the path of a directory. An empty text, such as an unset variable, is not the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def offset_bytes(text: str) -> int:
    """Return an offset or a length such as 0, 65536 or 4G."""
    size = grammar.size_bytes(text)
    if size is None or size > MAX_SIZE_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes like 65536 or 4G")
    return size


def result_count(text: str) -> int:
    """Return how many results an answer has at most, from 1 to MAX_RESULTS: they are in memory."""
    if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or not 1 <= int(text) <= MAX_RESULTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_RESULTS}")
    return int(text)


def granularity_bytes(text: str) -> int:
    """Return the bytes per bit of a bitmap: a power of two from 512 bytes to 2 GiB, as QEMU accepts."""
    size = grammar.size_bytes(text)
    if size is None or size not in [2**power for power in range(9, 32)]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two from 512 to 2G")
    return size


def new_speed(text: str) -> int | None:
    """Return a rate in bytes per second, or None for ``unlimited``. Raises UsageError."""
    if text == "unlimited":
        return None
    try:
        return speed_bytes_s(text)
    except argparse.ArgumentTypeError as err:
        raise UsageError(f"{err}, nor 'unlimited'.") from err


def chain_length(text: str) -> int:
    """Return a number of images, from 1 to 1000."""
    return count(text)


def keep_within(text: str) -> Duration:
    """Return a time such as 36h, 14d or 1y6m: years, months, weeks, days and hours, in this order."""
    return Duration(text, **_keep_within(text))


def tracker_name(text: str) -> str:
    """Return the name of a tracker, which becomes a part of the names of files."""
    if names.TRACKER.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be the name of a tracker: it has up to 63 letters, digits and characters of ._:@+-, and"
            " begins with a letter or digit"
        )
    return text


def domain_name(text: str) -> str:
    """Return the name of a new domain, which becomes a part of the names of libvirt's files."""
    if not names.is_printable_part(text, max_bytes=MAX_NAME_BYTES):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be the name of a domain: it has no '/', no control characters, and at most"
            f" {MAX_NAME_BYTES} bytes"
        )
    return text


def job(text: str) -> str:
    """Return the name of a director's job."""
    from vbackup.api import MAX_STREAM_JOB_BYTES, is_stream_job

    if not is_stream_job(text):
        raise argparse.ArgumentTypeError(
            f"{text[:200]!r} cannot name a job: it needs 1 to {MAX_STREAM_JOB_BYTES} printable bytes without a"
            " slash, and no dot in front"
        )
    return text


def director_time(text: str) -> str | None:
    """Return a time of a director's clock, or None for what stands for no time: a year before 1971, or no digits."""
    from vbackup.api import STREAM_TIME

    time = text.strip(".")
    if not time:
        return None
    if not STREAM_TIME.fullmatch(time):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a time like 2026.11.23.10.15.00")
    if time < "1971":
        return None
    try:
        datetime.strptime(f"{time} +0000", "%Y.%m.%d.%H.%M.%S %z")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: there is no such day or hour") from None
    return time


def director_job_time(text: str) -> str | None:
    """Return when a director made a job: the time in the job's unique name, or itself as ``director_time`` returns it.

    All characters of the name but digits may be full stops: "............2026.11.23.10.15.00.03." is vbackup-web's.
    """
    match = re.search(r"([0-9]{4}(?:\.[0-9]{2}){5})\.[0-9]+\.*$", text)
    return director_time(match[1] if match else text)


def timestamp(text: str) -> datetime:
    """Return a time: ISO 8601, or as in backup ids (20261123T101500Z); local time if it has no offset.

    It is in the time zone in which it was given. A local time that the change of a clock skips or repeats is refused.
    """
    text = text.strip()
    compact = re.fullmatch(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(Z?)", text, re.ASCII)
    iso = text
    if compact:
        year, month, day, hour, minute, second, zone = compact.groups()
        iso = f"{year}-{month}-{day}T{hour}:{minute}:{second}{zone}"
    try:
        time = datetime.fromisoformat(iso.replace("Z", "+00:00"))
        time.astimezone(timezone.utc)
        return time if time.tzinfo is not None else _local(time, text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time like 2026-11-23T10:15:00Z, '2026-11-23 10:15' or 20261123T101500Z"
        ) from None


def _local(time: datetime, text: str) -> datetime:
    """Return a local time with its offset. Raises ArgumentTypeError if it exists not exactly once."""
    first, second = (time.replace(fold=fold).astimezone() for fold in (0, 1))
    if first.utcoffset() == second.utcoffset():
        return first
    if first.replace(tzinfo=None) != time.replace(fold=0):  # astimezone() has moved both out of the gap
        before, after = sorted(one.replace(tzinfo=None).isoformat(timespec="seconds") for one in (first, second))
        raise argparse.ArgumentTypeError(
            f"{text!r} does not exist: the clocks were put forward over it; give {before} or {after}, or the time in"
            " UTC, with a Z at its end"
        )
    offsets = [
        f"{time.isoformat(timespec='seconds')}{one.strftime('%z')[:3]}:{one.strftime('%z')[3:]}"
        for one in (first, second)
    ]
    raise argparse.ArgumentTypeError(
        f"{text!r} was there twice, as the clocks were put back; say which: {offsets[0]} or {offsets[1]}"
    )
