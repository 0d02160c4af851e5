"""Decide once a second how fast a backup may copy, so that the guest's own requests do not take too long.

Additive increase, multiplicative decrease: half the speed if the guest waits too long, a small step up if it does not.
vbackup.engine.latency_throttle measures the latency, and sets the speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
#: No job is made slower than this, so that the backup ends.
FLOOR_BYTES_S = 1 * MIB
#: The first cut starts from this speed at most: a job that seems faster is skipping empty parts of the disk.
FIRST_BYTES_S = 256 * MIB
#: Number of steps from the floor to the highest speed seen.
STEPS = 32
#: The speed only rises if the latency is below this part of the limit, so that it does not oscillate around it.
CALM = 0.8
#: One slow request does not make a slow disk: the mean is calculated as if there were at least this many requests.
MIN_OPERATIONS = 4


@dataclass(frozen=True)
class Counters:
    """The guest's reads and writes of one disk since it was opened (QAPI BlockDeviceStats)."""

    operations: int
    time_ns: int  #: sum of the times they took


@dataclass(frozen=True)
class Window:
    """The measurements since the last decision."""

    latency_ms: float | None  #: mean time of the guest's requests; None if there were none
    copied_bytes_s: int  #: by the fastest job


@dataclass(frozen=True)
class Speed:
    """The speed limit of each job, and what the next decision needs to know."""

    speed_bytes_s: int | None = None  #: None: no limit
    peak_bytes_s: int = FLOOR_BYTES_S  #: the highest speed seen, of any job


def latency_ms(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> float | None:
    """Return the mean time of the guest's requests between two readings in ms, of the disk with the longest.

    None if no request has ended between them. A disk that was attached or reopened between them does not count.
    """
    means = []
    for disk, new in after.items():
        old = before.get(disk)
        operations = new.operations - old.operations if old is not None else 0
        if old is not None and operations > 0 and new.time_ns >= old.time_ns:
            means.append((new.time_ns - old.time_ns) / max(operations, MIN_OPERATIONS) / 1e6)
    return max(means, default=None)


def decide(before: Speed, window: Window, *, limit_ms: float, ceiling_bytes_s: int | None) -> Speed:
    """Return the new speed. ``ceiling_bytes_s`` is the user's own limit, or None."""
    seen = min(window.copied_bytes_s, FIRST_BYTES_S)
    peak = max(before.peak_bytes_s, seen)
    speed = _lower(before.speed_bytes_s, ceiling_bytes_s)
    waits_ms = window.latency_ms or 0.0
    if waits_ms > limit_ms:
        cut_from = _lower(speed, max(seen, FLOOR_BYTES_S))
        assert cut_from is not None
        speed = _lower(max(cut_from // 2, FLOOR_BYTES_S), ceiling_bytes_s)
    elif speed is not None and waits_ms <= CALM * limit_ms and 2 * window.copied_bytes_s >= speed:
        # If the jobs copy much less than they may, something else slows them down, and a higher limit would not help.
        speed = _lower(speed + max(peak // STEPS, FLOOR_BYTES_S), ceiling_bytes_s)
    return Speed(speed, peak)


def _lower(a_bytes_s: int | None, b_bytes_s: int | None) -> int | None:
    """Return the lower of two limits; None is no limit."""
    if a_bytes_s is None or b_bytes_s is None:
        return a_bytes_s if b_bytes_s is None else b_bytes_s
    return min(a_bytes_s, b_bytes_s)
