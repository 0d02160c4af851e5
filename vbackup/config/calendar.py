"""When a job runs: times of day, on days of the week, in local time. Does no I/O.

The grammar is small, so that systemd, cron and vbackup agree on it: ``at = ["01:30"]`` or ``at = "hourly"``, with
``on = ["sat", "sun"]``. In the night in which the clocks are put forward, a time that does not exist is the same time
by the old clock; in the one in which they are put back, a time that comes twice is the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone, tzinfo

#: As systemd writes them; the number is that of datetime.weekday().
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class Calendar:
    """Times at which a job is to run."""

    times: tuple[time, ...]  #: of the day, ascending, without seconds
    days: frozenset[int] = frozenset(range(7))  #: 0 is Monday

    def before(self, moment: datetime, zone: tzinfo | None = None) -> datetime:
        """Return the last time that is not after ``moment``, in UTC. ``zone``: None: the system's."""
        return max(one for one in self._around(moment, zone) if one <= moment)

    def after(self, moment: datetime, zone: tzinfo | None = None) -> datetime:
        """Return the first time after ``moment``, in UTC."""
        return min(one for one in self._around(moment, zone) if one > moment)

    def _around(self, moment: datetime, zone: tzinfo | None) -> list[datetime]:
        """Return all times from eight days before to eight days after."""
        today = moment.astimezone(zone).date()
        days = [today + timedelta(days=number) for number in range(-8, 9)]
        return [
            instant(datetime.combine(day, at), zone) for day in days if day.weekday() in self.days for at in self.times
        ]

    @property
    def longest_interval_s(self) -> float:
        """The longest time between two runs, on a clock that is never put forward or back."""
        week = sorted(86400 * day + 3600 * at.hour + 60 * at.minute for day in self.days for at in self.times)
        return float(max((b - a for a, b in zip(week, [*week[1:], week[0] + 7 * 86400])), default=7 * 86400))


def instant(wall: datetime, zone: tzinfo | None) -> datetime:
    """Return the moment, in UTC, of a time on the clock of a zone; None: the system's.

    A time that does not exist is one by the old clock; of one that comes twice, it is the first.
    """
    if zone is not None:
        return wall.replace(tzinfo=zone).astimezone(timezone.utc)
    # Of a naive time that does not exist, astimezone() takes the offset of the new clock, timestamp() of the old one.
    return datetime.fromtimestamp(wall.timestamp(), timezone.utc)


@dataclass(frozen=True)
class Window:
    """A part of the day; over midnight if ``end`` is before ``start``."""

    start: time
    end: time

    def is_open(self, moment: datetime, zone: tzinfo | None = None) -> bool:
        """Return True if ``moment`` lies in it."""
        now = moment.astimezone(zone).time()
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end
