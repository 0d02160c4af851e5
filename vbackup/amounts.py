"""Amounts as people read them: sizes, rates, ages. Programs read numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta


def size(size_bytes: int) -> str:
    """Return 1536 as "1.5 KiB"."""
    value, step = float(size_bytes), 1024
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < step:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= step
    return f"{value:.1f} TiB"


def rate(bytes_s: float | None) -> str:
    """Return a number of bytes per second in the units of --speed, such as "50.0 MiB/s"; None is "unlimited"."""
    return "unlimited" if bytes_s is None else f"{size(int(bytes_s))}/s"


def age(elapsed: timedelta) -> str:
    """Return 90 minutes as "1 h": the largest unit that is at least once in it. A time in the future is "0 s"."""
    elapsed_s = max(int(elapsed.total_seconds()), 0)
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if elapsed_s >= unit_s:
            return f"{elapsed_s // unit_s} {unit}"
    return f"{elapsed_s} s"
