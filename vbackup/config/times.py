"""Times of the configuration: when a job runs, and when backups may begin. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import time
from typing import Any, Union

from vbackup import names
from vbackup.config.calendar import DAYS, Window
from vbackup.config.keys import Kind

#: What the kinds of keys about times become.
Times = Union[tuple[time, ...], frozenset[int], Window]

#: What "hourly" means.
HOURLY = tuple(time(hour) for hour in range(24))

_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_DAY_NAMES = tuple(day.lower() for day in DAYS)


def day_times(value: Any) -> tuple[time, ...]:
    """Return times of day, ascending, of "hourly", "01:00" or ["01:00", "13:00"]. Raises ValueError."""
    if value == "hourly":
        return HOURLY
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("it is empty")
    return tuple(sorted({_time(text) for text in texts}))


def days(value: Any) -> frozenset[int]:
    """Return the days of ["sat", "sun"]; 0 is Monday. Raises ValueError."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("it is empty, so the job would never run")
    found = set()
    for text in texts:
        if not isinstance(text, str) or text.lower() not in _DAY_NAMES:
            hint = names.closest(text.lower(), _DAY_NAMES) if isinstance(text, str) else ""
            raise ValueError(f"{text!r} is no day{hint or f'; there are: {chr(44).join(_DAY_NAMES)}'}")
        found.add(_DAY_NAMES.index(text.lower()))
    return frozenset(found)


def window(value: Any) -> Window:
    """Return the window of "22:00-06:00". Raises ValueError."""
    first, dash, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    if not dash:
        raise ValueError(f"{value!r} is not like '22:00-06:00'")
    start, end = _time(first.strip()), time(0) if last.strip() == "24:00" else _time(last.strip())
    if start == end:
        raise ValueError(f"{value!r} never opens: leave it out if backups may begin at any time")
    return Window(start, end)


def contains(opened: Window, moment: time) -> bool:
    """Return True if the time of day lies in the window."""
    if opened.start < opened.end:
        return opened.start <= moment < opened.end
    return moment >= opened.start or moment < opened.end


def _time(text: Any) -> time:
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a time of day like '01:00'")
    return time(int(match[1]), int(match[2]))


READERS: Mapping[Kind, Callable[[Any], Times]] = {Kind.DAY_TIMES: day_times, Kind.DAYS: days, Kind.WINDOW: window}
