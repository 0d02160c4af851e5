"""The values that argument texts become: sizes, rates, times."""

from __future__ import annotations

import argparse
import re
import shlex
from datetime import datetime, timezone
from pathlib import Path

from vbackup import names
from vbackup.api import Duration, note_fault
from vbackup.errors import UsageError
from vbackup.fields import MAX_SIZE_BYTES

#: As virsh reads sizes: k, KiB = 1024 bytes; KB = 1000.
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgtpe", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[a-z]*)(/s)?", re.IGNORECASE | re.ASCII)
#: A year: longer than anybody waits, and within what the operating system can count.
MAX_WAIT_S = 365 * 24 * 3600
#: Limits for the latency of a guest's request; after 30 s guests report a failed disk.
MIN_LATENCY_MS, MAX_LATENCY_MS = 0.1, 60_000.0
#: Most threads; more would only cost memory.
MAX_COUNT = 1000
#: Less than any guest that boots has.
MIN_MEMORY_BYTES = 16 * 1024 * 1024
MAX_PORT = 65535
#: Most extents of one answer.
MAX_RESULTS = 1_000_000
#: The largest number of backups that a rule can keep: 114 years of one an hour.
MAX_KEPT = 1_000_000
#: libvirt writes a definition to NAME.xml.new first, and a file name has 255 bytes.
MAX_NAME_BYTES = 255 - len(".xml.new")


def directory(text: str) -> Path:
    """Return the path of a directory. An empty text, such as an unset variable, is not the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def host_and_port(text: str) -> tuple[str, int]:
    """Return a host and a port: localhost:8443, 0.0.0.0:8443, [::1]:8443. Port 0 is any that is free."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text, re.ASCII)
    if match is None or int(match[3]) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as localhost:8443 or [::1]:8443")
    return match[1] or match[2], int(match[3])


def host_and_ports(text: str) -> tuple[str, range]:
    """Return a host and its ports: backup.example.com:10809, [fd00::1]:10809-10812."""
    first, dash, last = text.rpartition("-")
    if not dash or not re.fullmatch(r"\d{1,5}", last, re.ASCII) or not first.rpartition(":")[2].isdecimal():
        first, last = text, text.rpartition(":")[2]
    try:
        host, number = host_and_port(first)
    except argparse.ArgumentTypeError:
        number = 0
    if not number or not number <= int(last) <= MAX_PORT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HOST:PORT or HOST:PORT-PORT, such as backup.example.com:10809-10812"
        )
    return host, range(number, int(last) + 1)


def absolute_directory(text: str) -> str:
    """Return the path of a directory of another host."""
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return text


def offset_bytes(text: str) -> int:
    """Return an offset or a length such as 0, 65536 or 4G."""
    size = _size_bytes(text)
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
    size = _size_bytes(text)
    if size is None or size not in [2**power for power in range(9, 32)]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two from 512 to 2G")
    return size


def _size_bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        return None
    # A number too long for a float is infinite, and beyond every limit.
    return int(min(float(match["number"]) * factor, MAX_SIZE_BYTES + 1))


def memory_bytes(text: str) -> int:
    """Return an amount of memory, such as 512M or 4G, from 16 MiB up."""
    size = _size_bytes(text)
    if size is None or size < MIN_MEMORY_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory like 512M or 4G, from 16M up")
    return size


def guest_command(text: str) -> str:
    """Return a command for the guest, whose words can be told apart."""
    try:
        words = shlex.split(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} has words that cannot be told apart: {err}") from None
    if not words:
        raise argparse.ArgumentTypeError("the command is empty")
    return text


def console_pattern(text: str) -> str:
    """Return a regular expression, which matches something."""
    try:
        if re.compile(text).search(""):
            raise argparse.ArgumentTypeError(f"{text!r} also matches a console on which nothing is")
    except (re.error, OverflowError, RecursionError) as err:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {err}") from None
    return text


def speed_bytes_s(text: str) -> int:
    """Return a rate such as 50M, 50MiB/s, 1.5GB/s or 1000000 in bytes per second."""
    rate = _size_bytes(text)
    if rate is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate like 50M, 50MiB/s or 1000000")
    if not 1 <= rate <= MAX_SIZE_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to {MAX_SIZE_BYTES} bytes per second")
    return rate


def new_speed(text: str) -> int | None:
    """Return a rate in bytes per second, or None for ``unlimited``. Raises UsageError."""
    if text == "unlimited":
        return None
    try:
        return speed_bytes_s(text)
    except argparse.ArgumentTypeError as err:
        raise UsageError(f"{err}, nor 'unlimited'.") from err


#: Units of a duration, in seconds.
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(us|ms|s|min|m|h|d)\s*", re.ASCII)


def duration_s(text: str, *, unit_s: float = 1) -> float | None:
    """Return a time such as 90s, 5m, 1h30m or 500ms in seconds, or None for another text.

    ``unit_s``: what a number without a unit counts, in seconds.
    """
    text = text.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        return float(text) * unit_s
    if re.fullmatch(f"({_DURATION.pattern})+", text, re.ASCII) is None:
        return None
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION.findall(text))


def freeze_limit_s(text: str) -> int:
    """Return whole seconds within the limits of a freeze."""
    from vbackup.api import MAX_FREEZE_LIMIT_S, MIN_FREEZE_LIMIT_S  # which few values are about

    limit_s = duration_s(text)
    if limit_s is None or not MIN_FREEZE_LIMIT_S <= limit_s <= MAX_FREEZE_LIMIT_S or limit_s != int(limit_s):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of seconds from {MIN_FREEZE_LIMIT_S} to {MAX_FREEZE_LIMIT_S}, like 20, 20s"
            " or 1m"
        )
    return int(limit_s)


def milliseconds(text: str) -> float:
    """Return a time such as 20, 20ms, 500us or 0.5s in milliseconds; from 0.1 ms to a minute."""
    value_s = duration_s(text, unit_s=1e-3)
    if value_s is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 20ms, 500us or 0.5s")
    value = round(value_s * 1000, 6)
    if not MIN_LATENCY_MS <= value <= MAX_LATENCY_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0.1ms to 60s")
    return value


def count(text: str) -> int:
    """Return a number of threads, from 1 to 1000."""
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_COUNT}")
    return int(text)


def percent(text: str) -> float:
    """Return a percentage such as 5, 0.5 or 10%: above 0, up to 100."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%?", text.strip(), re.ASCII)
    if match is None or not 0 < float(match[1]) <= 100:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage above 0 and up to 100")
    return float(match[1])


def keep_count(text: str) -> int:
    """Return how many backups a rule keeps, from 1 to a million: a rule that keeps none is left out."""
    if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or not 1 <= int(text) <= MAX_KEPT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from 1 to {MAX_KEPT}; leave out a rule to keep none"
        )
    return int(text)


def chain_length(text: str) -> int:
    """Return a number of images, from 1 to 1000."""
    return count(text)


_KEEP_WITHIN = re.compile(
    r"(?:(?P<years>\d{1,5})y)?(?:(?P<months>\d{1,5})m)?(?:(?P<weeks>\d{1,5})w)?(?:(?P<days>\d{1,5})d)?"
    r"(?:(?P<hours>\d{1,5})h)?",
    re.ASCII,
)


def keep_within(text: str) -> Duration:
    """Return a time such as 36h, 14d or 1y6m: years, months, weeks, days and hours, in this order."""
    match = _KEEP_WITHIN.fullmatch(text)
    numbers = {unit: int(number) for unit, number in match.groupdict("0").items()} if match is not None else {}
    if not any(numbers.values()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time like 36h, 14d, 2w or 1y6m: numbers with the units y, m (months), w, d, h, in this"
            " order, and not all 0"
        )
    return Duration(text, **numbers)


def seconds(text: str) -> float:
    """Return a time to wait in seconds, up to a year: 90, 90s, 5m, 1h30m."""
    value = duration_s(text)
    if value is None or value > MAX_WAIT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 90, 90s, 5m or 1h30m, up to a year")
    return value


def positive_seconds(text: str) -> float:
    """Return a time to wait in seconds, as ``seconds``, but above 0."""
    value = seconds(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not more than 0 seconds: give one like 90s or 5m")
    return value


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


def note(text: str) -> str:
    """Return the text if it can be the note of a backup, or a reason: a line of text for people."""
    fault = note_fault(text)
    if fault is not None:
        raise argparse.ArgumentTypeError(f"the text {fault}")
    return text


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
