"""The grammar of values, for options and for the configuration: sizes, rates, times, counts. Does no I/O.

Each function returns what a text means, or raises ValueError with the end of a sentence that says what is valid.
"""

from __future__ import annotations

import re
import shlex

from vbackup.fields import MAX_SIZE_BYTES
from vbackup.model import MAX_FREEZE_LIMIT_S, MIN_FREEZE_LIMIT_S

#: As virsh reads sizes: k, KiB = 1024 bytes; KB = 1000.
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgtpe", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[a-z]*)(/s)?", re.IGNORECASE | re.ASCII)
#: A year: longer than anybody waits, and within what the operating system can count.
MAX_WAIT_S = 365 * 24 * 3600
MAX_DELAY_S = 24 * 3600
#: Limits for the latency of a guest's request; after 30 s guests report a failed disk.
MIN_LATENCY_MS, MAX_LATENCY_MS = 0.1, 60_000.0
#: Most threads; more would only cost memory.
MAX_COUNT = 1000
#: Less than any guest that boots has.
MIN_MEMORY_BYTES = 16 * 1024 * 1024
MAX_PORT = 65535
#: The largest number of backups that a rule can keep: 114 years of one an hour.
MAX_KEPT = 1_000_000
#: A note is a line in a list, not a document.
MAX_NOTE_CHARACTERS = 1000
#: Units of a duration, in seconds.
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(us|ms|s|min|m|h|d|w)\s*", re.ASCII)
_CREDENTIAL = re.compile(r"[A-Za-z0-9_.@+-]{1,255}", re.ASCII)
_KEEP_WITHIN = re.compile(
    r"(?:(?P<years>\d{1,5})y)?(?:(?P<months>\d{1,5})m)?(?:(?P<weeks>\d{1,5})w)?(?:(?P<days>\d{1,5})d)?"
    r"(?:(?P<hours>\d{1,5})h)?",
    re.ASCII,
)


def size_bytes(text: str) -> int | None:
    """Return a size such as 65536 or 4G in bytes, at most MAX_SIZE_BYTES + 1, or None for another text."""
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        return None
    # A number too long for a float is infinite, and beyond every limit.
    return int(min(float(match["number"]) * factor, MAX_SIZE_BYTES + 1))


def memory_bytes(text: str) -> int:
    """Return an amount of memory, such as 512M or 4G, from 16 MiB up."""
    size = size_bytes(text)
    if size is None or size < MIN_MEMORY_BYTES:
        raise ValueError(f"{text!r} is not an amount of memory like 512M or 4G, from 16M up")
    return size


def speed_bytes_s(text: str) -> int:
    """Return a rate such as 50M, 50MiB/s, 1.5GB/s or 1000000 in bytes per second."""
    rate = size_bytes(text)
    if rate is None:
        raise ValueError(f"{text!r} is not a rate like 50M, 50MiB/s or 1000000")
    if not 1 <= rate <= MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is not from 1 to {MAX_SIZE_BYTES} bytes per second")
    return rate


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


def seconds(text: str) -> float:
    """Return a time to wait in seconds, up to a year: 90, 90s, 5m, 1h30m."""
    value = duration_s(text)
    if value is None or value > MAX_WAIT_S:
        raise ValueError(f"{text!r} is not a time like 90, 90s, 5m or 1h30m, up to a year")
    return value


def positive_seconds(text: str) -> float:
    """Return a time to wait in seconds, as ``seconds``, but above 0."""
    value = seconds(text)
    if value <= 0:
        raise ValueError(f"{text!r} is not more than 0 seconds: give one like 90s or 5m")
    return value


def age_s(text: str) -> float:
    """Return an age in seconds, from a minute to a year: 26h, 30d, 4w."""
    value = duration_s(text)
    if value is None or not 60 <= value <= MAX_WAIT_S:  # noqa: PLR2004
        raise ValueError(f"{text!r} is not a time like 26h, 30d or 4w, from a minute to a year")
    return value


def delay_s(text: str) -> float:
    """Return a time to begin later in seconds, up to a day: 10m, 1h."""
    value = duration_s(text)
    if value is None or value > MAX_DELAY_S:
        raise ValueError(f"{text!r} is not a time like 10m or 1h, up to a day")
    return value


def freeze_limit_s(text: str) -> int:
    """Return whole seconds within the limits of a freeze."""
    limit_s = duration_s(text)
    if limit_s is None or not MIN_FREEZE_LIMIT_S <= limit_s <= MAX_FREEZE_LIMIT_S or limit_s != int(limit_s):
        raise ValueError(
            f"{text!r} is not a whole number of seconds from {MIN_FREEZE_LIMIT_S} to {MAX_FREEZE_LIMIT_S}, like 20, 20s"
            " or 1m"
        )
    return int(limit_s)


def milliseconds(text: str) -> float:
    """Return a time such as 20, 20ms, 500us or 0.5s in milliseconds; from 0.1 ms to a minute."""
    value_s = duration_s(text, unit_s=1e-3)
    if value_s is None:
        raise ValueError(f"{text!r} is not a time like 20ms, 500us or 0.5s")
    value = round(value_s * 1000, 6)
    if not MIN_LATENCY_MS <= value <= MAX_LATENCY_MS:
        raise ValueError(f"{text!r} is not from 0.1ms to 60s")
    return value


def count(text: str) -> int:
    """Return a number of threads, from 1 to 1000."""
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= MAX_COUNT:
        raise ValueError(f"{text!r} is not a number from 1 to {MAX_COUNT}")
    return int(text)


def percent(text: str) -> float:
    """Return a percentage such as 5, 0.5 or 10%: above 0, up to 100."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%?", text.strip(), re.ASCII)
    if match is None or not 0 < float(match[1]) <= 100:  # noqa: PLR2004
        raise ValueError(f"{text!r} is not a percentage above 0 and up to 100")
    return float(match[1])


def keep_count(text: str) -> int:
    """Return how many backups a rule keeps, from 1 to a million: a rule that keeps none is left out."""
    if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or not 1 <= int(text) <= MAX_KEPT:
        raise ValueError(f"{text!r} is not a number from 1 to {MAX_KEPT}; leave out a rule to keep none")
    return int(text)


def keep_within(text: str) -> dict[str, int]:
    """Return the numbers of a time such as 36h, 14d or 1y6m: years, months, weeks, days and hours, in this order."""
    match = _KEEP_WITHIN.fullmatch(text)
    numbers = {unit: int(number) for unit, number in match.groupdict("0").items()} if match is not None else {}
    if not any(numbers.values()):
        raise ValueError(
            f"{text!r} is not a time like 36h, 14d, 2w or 1y6m: numbers with the units y, m (months), w, d, h, in this"
            " order, and not all 0"
        )
    return numbers


def host_and_port(text: str) -> tuple[str, int]:
    """Return a host and a port: localhost:8443, 0.0.0.0:8443, [::1]:8443. Port 0 is any that is free."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text, re.ASCII)
    if match is None or int(match[3]) > MAX_PORT:
        raise ValueError(f"{text!r} is not HOST:PORT, such as localhost:8443 or [::1]:8443")
    return match[1] or match[2], int(match[3])


def host_and_ports(text: str) -> tuple[str, range]:
    """Return a host and its ports: backup.example.com:10809, [fd00::1]:10809-10812."""
    first, dash, last = text.rpartition("-")
    if not dash or not re.fullmatch(r"\d{1,5}", last, re.ASCII) or not first.rpartition(":")[2].isdecimal():
        first, last = text, text.rpartition(":")[2]
    try:
        host, number = host_and_port(first)
    except ValueError:
        number = 0
    if not number or not number <= int(last) <= MAX_PORT:
        raise ValueError(f"{text!r} is not HOST:PORT or HOST:PORT-PORT, such as backup.example.com:10809-10812")
    return host, range(number, int(last) + 1)


def absolute_directory(text: str) -> str:
    """Return the path of a directory of another host."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def guest_command(text: str) -> str:
    """Return a command for the guest, whose words can be told apart."""
    try:
        words = shlex.split(text)
    except ValueError as err:
        raise ValueError(f"{text!r} has words that cannot be told apart: {err}") from None
    if not words:
        raise ValueError("the command is empty")
    return text


def console_pattern(text: str) -> str:
    """Return a regular expression, which matches something."""
    try:
        matches_nothing = re.compile(text).search("") is not None
    except (re.error, OverflowError, RecursionError) as err:
        raise ValueError(f"{text!r} is not a regular expression: {err}") from None
    if matches_nothing:
        raise ValueError(f"{text!r} also matches a console on which nothing is")
    return text


def credential_name(text: str) -> str:
    """Return the text if systemd takes it as the name of a credential; it stands in units, before a colon."""
    if not _CREDENTIAL.fullmatch(text) or text in (".", ".."):
        raise ValueError(f"{text!r} should have 1 to 255 letters, digits and any of _.@+-")
    return text


def note(text: str) -> str:
    """Return the text if it can be the note of a backup: a line of text for people."""
    fault = note_fault(text)
    if fault is not None:
        raise ValueError(f"the text {fault}")
    return text


def note_fault(text: str) -> str | None:
    """Return why the text cannot be a note, as the end of a sentence, or None.

    Characters that are not printable could steer a terminal, or break a line of a list. Bytes of the command line that
    are no UTF-8 cannot be stored.
    """
    if not text:
        return "is empty"
    if len(text) > MAX_NOTE_CHARACTERS:
        return f"has {len(text)} characters; at most {MAX_NOTE_CHARACTERS} are allowed"
    strange = next((char for char in text if not char.isprintable()), None)
    if strange is not None:
        return f"has a character that cannot be printed: {strange!r}; it has to be one line of text"
    return None
