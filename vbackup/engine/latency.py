"""How fast a backup may copy so that the guest's own requests do not take too long: a decision once a second.

Additive increase, multiplicative decrease: half the speed where the guest waits too long, a small step up where it
does not. vbackup.engine.latency_throttle measures, and sets what is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
#: A job is never made slower than this, so that the backup ends.
FLOOR_BYTES_S = 1 * MIB
#: The first cut begins at no more than this: a job that seems faster is passing over what is empty.
FIRST_BYTES_S = 256 * MIB
#: From the floor to the fastest that was copied in so many steps.
STEPS = 32
#: Only well below the limit it gets faster, so that it does not swing around it.
CALM = 0.8
#: One slow request is no slow disk: the mean is taken as if there had been at least so many.
MIN_OPERATIONS = 4


@dataclass(frozen=True)
class Counters:
    """What the guest has read and written of one disk since it was opened (QAPI BlockDeviceStats)."""

    operations: int
    time_ns: int  #: that they took, all together


@dataclass(frozen=True)
class Window:
    """What was measured since the last decision."""

    latency_ms: float | None  #: mean time of the guest's requests; None if there were none
    copied_bytes_s: int  #: by the fastest job


@dataclass(frozen=True)
class Speed:
    """How fast each job may copy."""

    speed_bytes_s: int | None = None  #: None: no limit
    peak_bytes_s: int = FLOOR_BYTES_S  #: the fastest that a job was seen to copy


def latency_ms(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> float | None:
    """The mean time of the requests between two readings, of the disk where it was longest.

    None where there were none. A disk that was attached or opened anew meanwhile does not count. A request counts when
    it has ended.
    """
    means = []
    for disk, now in after.items():
        then = before.get(disk)
        operations = now.operations - then.operations if then is not None else 0
        if then is not None and operations > 0 and now.time_ns >= then.time_ns:
            means.append((now.time_ns - then.time_ns) / max(operations, MIN_OPERATIONS) / 1e6)
    return max(means, default=None)


def decide(before: Speed, window: Window, *, limit_ms: float, ceiling_bytes_s: int | None) -> Speed:
    """The speed from now on; ``ceiling_bytes_s`` is what the user allows, None for no limit."""
    seen = min(window.copied_bytes_s, FIRST_BYTES_S)
    peak = max(before.peak_bytes_s, seen)
    speed = _lower(before.speed_bytes_s, ceiling_bytes_s)
    waits_ms = window.latency_ms or 0.0
    if waits_ms > limit_ms:
        begins_at = _lower(speed, max(seen, FLOOR_BYTES_S))
        assert begins_at is not None
        speed = _lower(max(begins_at // 2, FLOOR_BYTES_S), ceiling_bytes_s)
    elif speed is not None and waits_ms <= CALM * limit_ms and 2 * window.copied_bytes_s >= speed:
        # Where less is copied than allowed, something else is what holds it up.
        speed = _lower(speed + max(peak // STEPS, FLOOR_BYTES_S), ceiling_bytes_s)
    return Speed(speed, peak)


def _lower(one_bytes_s: int | None, other_bytes_s: int | None) -> int | None:
    """The lower of two limits, None being none."""
    if one_bytes_s is None or other_bytes_s is None:
        return one_bytes_s if other_bytes_s is None else other_bytes_s
    return min(one_bytes_s, other_bytes_s)
