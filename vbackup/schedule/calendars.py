"""The times of a job as systemd's OnCalendar= has them. Does no I/O.

systemd leaves out a time that does not exist because the clocks are put forward; vbackup runs the job an hour later
(vbackup.config.calendar). So the times that replace such ones are added, in the months and on the days of the week in
which the zone has such nights: in Berlin "Sun *-03-* 03:30:00" for 02:30. Where nothing is due then, nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime, time, timedelta, tzinfo

from vbackup.config.calendar import DAYS, Calendar, instant

#: Rules of zones repeat within so many years.
_YEARS = 8
_ALL_DAYS = frozenset(range(7))
_HOURS = 24


def on_calendar(calendar: Calendar, *, year: int, zone: tzinfo | None = None) -> tuple[str, ...]:
    """Return the values of OnCalendar=; ``year``: from which the nights are looked at, ``zone``: None: the system's."""
    replaced = sorted(set(_replaced(calendar, year, zone)))
    return (
        *(f"{_days(calendar.days)}*-*-* {one}" for one in _times(calendar.times)),
        *(f"{DAYS[weekday]} *-{month:02}-* {at:%H:%M}:00" for month, weekday, at in replaced),
    )


def _times(times: Iterable[time]) -> Iterator[str]:
    """Yield the times, those of the same minute together: "01,13:30:00"."""
    by_minute: dict[int, list[int]] = {}
    for one in times:
        by_minute.setdefault(one.minute, []).append(one.hour)
    for minute, hours in sorted(by_minute.items()):
        listed = "*" if len(set(hours)) == _HOURS else ",".join(f"{hour:02}" for hour in sorted(set(hours)))
        yield f"{listed}:{minute:02}:00"


def _days(days: frozenset[int]) -> str:
    return "" if days == _ALL_DAYS else ",".join(DAYS[day] for day in sorted(days)) + " "


def _replaced(calendar: Calendar, year: int, zone: tzinfo | None) -> Iterator[tuple[int, int, time]]:
    """Yield month, day of the week and time of what takes the place of a time that does not exist."""
    day = date(year, 1, 1)
    while day.year < year + _YEARS:
        if day.weekday() in calendar.days and _is_short(day, zone):
            for at in calendar.times:
                there = _there(datetime.combine(day, at), zone)
                if there.time() != at and there.time() not in calendar.times:
                    yield there.month, there.weekday(), there.time()
        day += timedelta(days=1)


def _is_short(day: date, zone: tzinfo | None) -> bool:
    """Return True if the clocks are put forward on that day."""
    begin, end = (instant(datetime.combine(one, time()), zone) for one in (day, day + timedelta(days=1)))
    return end - begin < timedelta(days=1)


def _there(wall: datetime, zone: tzinfo | None) -> datetime:
    """Return what the clock says when a time by the old clock has come."""
    return instant(wall, zone).astimezone(zone)
