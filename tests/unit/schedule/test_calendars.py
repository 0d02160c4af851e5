"""systemd starts a job at all times at which its calendar has it run, in every zone and on every night."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from vbackup.config.calendar import Calendar
from vbackup.schedule.calendars import on_calendar

HOURLY = Calendar(tuple(time(hour) for hour in range(24)))
EVERY = frozenset(range(7))


def at(*texts: str, days: frozenset[int] = EVERY) -> Calendar:
    return Calendar(tuple(sorted(time.fromisoformat(text) for text in texts)), days)


@pytest.mark.parametrize(
    ("calendar", "zone", "wanted"),
    [
        (at("01:30"), "UTC", ["*-*-* 01:30:00"]),
        (at("01:30", "13:30", "12:00"), "UTC", ["*-*-* 12:00:00", "*-*-* 01,13:30:00"]),
        (at("01:30", days=frozenset((5, 6))), "UTC", ["Sat,Sun *-*-* 01:30:00"]),
        (HOURLY, "UTC", ["*-*-* *:00:00"]),
        (HOURLY, "Europe/Berlin", ["*-*-* *:00:00"]),
        (at("01:30"), "Europe/Berlin", ["*-*-* 01:30:00"]),
        (at("02:30"), "Europe/Berlin", ["*-*-* 02:30:00", "Sun *-03-* 03:30:00"]),
        (at("02:30", days=frozenset((0,))), "Europe/Berlin", ["Mon *-*-* 02:30:00"]),
        (at("02:30"), "America/New_York", ["*-*-* 02:30:00", "Sun *-03-* 03:30:00"]),
        (at("02:30"), "Australia/Sydney", ["*-*-* 02:30:00", "Sun *-10-* 03:30:00"]),
        (at("00:15"), "Asia/Beirut", ["*-*-* 00:15:00", "Sun *-03-* 01:15:00"]),
        (at("02:15"), "Australia/Lord_Howe", ["*-*-* 02:15:00", "Sun *-10-* 02:45:00"]),
    ],
)
def test_times_of_a_calendar(calendar: Calendar, zone: str, wanted: list[str]) -> None:
    assert list(on_calendar(calendar, year=2026, zone=ZoneInfo(zone))) == wanted


def test_systems_zone_is_used_without_another(monkeypatch: pytest.MonkeyPatch) -> None:
    import time as clock

    monkeypatch.setenv("TZ", "Europe/Berlin")
    clock.tzset()
    try:
        assert on_calendar(at("02:30"), year=2026) == ("*-*-* 02:30:00", "Sun *-03-* 03:30:00")
    finally:
        monkeypatch.undo()
        clock.tzset()


def elapses(expression: str, zone: str, *, after: datetime, number: int) -> set[datetime]:
    """When systemd itself says that a timer elapses."""
    base = after.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S")
    done = subprocess.run(
        ["systemd-analyze", "calendar", "--base-time", base, "--iterations", str(number), expression],
        env={**os.environ, "TZ": zone, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    pattern = r"\(in UTC\): ... (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC"
    found = re.findall(pattern, done.stdout)
    if not found:  # the zone is UTC
        found = re.findall(r"(?:Next elapse|Iter\. #\d+): ... (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", done.stdout)
    return {datetime.strptime(one, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc) for one in found}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut"])
@pytest.mark.parametrize(
    "calendar",
    [at("02:30"), at("00:15", "02:15"), at("02:30", days=frozenset((5, 6))), HOURLY],
    ids=["one", "two", "weekend", "hourly"],
)
def test_systemd_starts_it_at_each_time_of_the_calendar(zone: str, calendar: Calendar) -> None:
    """In the weeks around the nights in which the clocks are put forward and back, of a year to come."""
    expressions = on_calendar(calendar, year=2026, zone=ZoneInfo(zone))
    for month, day in ((3, 1), (3, 20), (10, 1), (10, 20)):
        begin = datetime(2027, month, day, 12, tzinfo=timezone.utc)
        number = 14 * len(calendar.times)
        started = set[datetime]().union(*(elapses(one, zone, after=begin, number=number) for one in expressions))
        moment, end = begin, begin + timedelta(days=12)
        while moment < end:
            moment = calendar.after(moment, ZoneInfo(zone))
            assert moment in started, f"{moment:%F %T} UTC in {zone}"
