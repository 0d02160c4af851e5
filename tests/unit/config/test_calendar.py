"""A job runs once at each of its times, in the nights too in which clocks are put forward or back."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbackup.config.calendar import DAYS, Calendar, Window

BERLIN = ZoneInfo("Europe/Berlin")
#: With half an hour of summer time, with a day that never was, and others.
ZONES = [BERLIN, *map(ZoneInfo, ("America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "UTC"))]
UTC = timezone.utc


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def runs(calendar: Calendar, first: datetime, last: datetime, zone: ZoneInfo | None = BERLIN) -> Iterator[datetime]:
    moment = calendar.after(first, zone)
    while moment <= last:
        yield moment
        moment = calendar.after(moment, zone)


def test_time_that_does_not_exist_is_that_of_the_old_clock() -> None:
    nightly = Calendar((time(2, 30),))
    assert list(runs(nightly, utc(2026, 3, 28, 12), utc(2026, 3, 30, 12))) == [
        utc(2026, 3, 29, 1, 30),  # 02:30 by the clock of winter, which shows 03:30 in summer
        utc(2026, 3, 30, 0, 30),
    ]


def test_time_that_comes_twice_is_the_first_one() -> None:
    nightly = Calendar((time(2, 30),))
    assert list(runs(nightly, utc(2026, 10, 24, 12), utc(2026, 10, 26, 12))) == [
        utc(2026, 10, 25, 0, 30),
        utc(2026, 10, 26, 1, 30),
    ]


def test_hourly_runs_never_come_twice_when_the_clock_is_put_forward() -> None:
    hourly = Calendar(tuple(time(hour) for hour in range(24)))
    found = list(runs(hourly, utc(2026, 3, 28, 23, 30), utc(2026, 3, 29, 4)))
    assert found == [utc(2026, 3, 29, hour) for hour in range(5)]


def test_hourly_runs_leave_out_the_second_hour_when_the_clock_is_put_back() -> None:
    hourly = Calendar(tuple(time(hour) for hour in range(24)))
    found = list(runs(hourly, utc(2026, 10, 24, 22, 30), utc(2026, 10, 25, 4)))
    assert found == [utc(2026, 10, 24, 23), utc(2026, 10, 25, 0), *(utc(2026, 10, 25, hour) for hour in (2, 3, 4))]


def test_weekly_job_runs_on_its_day_of_the_zone() -> None:
    weekly = Calendar((time(0, 15),), frozenset({6}))  # Sunday in Auckland begins on Saturday in UTC
    auckland = ZoneInfo("Pacific/Auckland")
    moment = weekly.after(utc(2026, 11, 30), auckland)
    assert moment == utc(2026, 12, 5, 11, 15)
    assert moment.astimezone(auckland).weekday() == 6
    assert weekly.after(moment, auckland) == moment + timedelta(days=7)
    assert weekly.before(moment, auckland) == moment
    assert weekly.before(moment - timedelta(seconds=1), auckland) == moment - timedelta(days=7)


MOMENTS = st.datetimes(
    utc(2005, 1, 1).replace(tzinfo=None), utc(2037, 12, 1).replace(tzinfo=None), timezones=st.just(UTC)
)
CALENDARS = st.builds(
    lambda minutes, days: Calendar(tuple(time(one // 60, one % 60) for one in sorted(minutes)), days),
    st.sets(st.integers(0, 1439), min_size=1, max_size=5),
    st.frozensets(st.integers(0, 6), min_size=1),
)


@given(CALENDARS, MOMENTS, st.sampled_from(ZONES))
@settings(deadline=None)
def test_last_and_next_time_are_neighbours(calendar: Calendar, moment: datetime, zone: ZoneInfo) -> None:
    last, following = calendar.before(moment, zone), calendar.after(moment, zone)
    assert last <= moment < following
    assert calendar.after(last, zone) == following
    assert calendar.before(following, zone) == following
    assert calendar.before(following - timedelta(microseconds=1), zone) == last
    assert last.utcoffset() == following.utcoffset() == timedelta(0)


@given(CALENDARS, st.dates(date(2009, 1, 1), date(2036, 1, 1)), st.sampled_from(ZONES))
@settings(deadline=None, max_examples=30)
def test_times_of_three_weeks_are_those_on_the_calendar(calendar: Calendar, day: date, zone: ZoneInfo) -> None:
    begin, days = datetime.combine(day, time(), zone), [day + timedelta(days=number) for number in range(22)]
    expected = {
        datetime.combine(one, at, zone).astimezone(UTC)
        for one in days
        if one.weekday() in calendar.days
        for at in calendar.times
    }
    first = (begin - timedelta(microseconds=1)).astimezone(UTC)
    last = datetime.combine(days[-2], time(12), zone).astimezone(UTC)
    assert list(runs(calendar, first, last, zone)) == sorted(one for one in expected if first < one <= last)


@given(CALENDARS, MOMENTS)
@settings(deadline=None)
def test_no_interval_is_longer_than_the_longest(calendar: Calendar, moment: datetime) -> None:
    zone = ZoneInfo("UTC")
    found = [calendar.after(moment, zone)]
    for _ in range(40):
        found.append(calendar.after(found[-1], zone))
    longest = max((b - a).total_seconds() for a, b in zip(found, found[1:]))
    assert longest == calendar.longest_interval_s or found[-1] - found[0] < timedelta(days=7)
    assert longest <= calendar.longest_interval_s


def test_longest_interval_of_a_week() -> None:
    assert Calendar((time(1),)).longest_interval_s == 86400
    assert Calendar((time(1), time(13)), frozenset({5, 6})).longest_interval_s == 5 * 86400 + 12 * 3600
    assert Calendar((time(1),), frozenset({3})).longest_interval_s == 7 * 86400


@pytest.fixture
def system_in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone of the system is Berlin's."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    clock.tzset()
    yield
    monkeypatch.undo()
    clock.tzset()


@pytest.mark.usefixtures("system_in_berlin")
def test_without_a_zone_it_is_that_of_the_system() -> None:
    assert os.environ["TZ"] == "Europe/Berlin"
    for at in (time(1), time(2, 30)):
        calendar = Calendar((at,))
        for first, last in (
            (utc(2026, 3, 27), utc(2026, 4, 1)),
            (utc(2026, 10, 23), utc(2026, 10, 28)),
        ):
            assert list(runs(calendar, first, last, None)) == list(runs(calendar, first, last, BERLIN))
    assert Window(time(1), time(2)).is_open(utc(2026, 6, 1, 23, 30))


def test_days_are_in_the_order_of_datetime() -> None:
    assert [date(2026, 11, 30 - number).strftime("%a") for number in range(7)] == [
        DAYS[date(2026, 11, 30 - number).weekday()] for number in range(7)
    ]


# Windows


@pytest.mark.parametrize(
    ("window", "open_at", "closed_at"),
    [
        (Window(time(9), time(17)), (time(9), time(12), time(16, 59, 59)), (time(8, 59, 59), time(17), time(0))),
        (Window(time(22), time(6)), (time(22), time(0), time(5, 59, 59)), (time(6), time(12), time(21, 59, 59))),
        (Window(time(22), time(0)), (time(22), time(23, 59, 59)), (time(0), time(21))),
    ],
)
def test_window_is_open_from_its_start_until_its_end(
    window: Window, open_at: tuple[time, ...], closed_at: tuple[time, ...]
) -> None:
    def is_open(at: time) -> bool:
        return window.is_open(datetime.combine(date(2026, 7, 1), at, BERLIN).astimezone(UTC), BERLIN)

    assert all(map(is_open, open_at))
    assert not any(map(is_open, closed_at))
