"""A job is due if its last time has passed without a run that ended, and a clock that jumps is noticed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.runs.examples import run
from vbackup.config.calendar import Calendar, Window
from vbackup.config.model import Job, Place
from vbackup.runs import due
from vbackup.runs.record import Outcome, Run

UTC = timezone.utc
NOW = datetime(2026, 11, 30, 8, 0, tzinfo=UTC)
NIGHTLY = Job("nightly", "main", Place(Path("f"), 1), calendar=Calendar((time(1),)))
LAST_TIME = datetime(2026, 11, 30, 1, 0, tzinfo=UTC)


def ran(outcome: Outcome = Outcome.DONE, **ago: float) -> Run:
    return replace(run(started=NOW - timedelta(**ago), outcome=outcome), scheduled=None)


@pytest.mark.parametrize(
    ("runs", "is_due"),
    [
        ([], True),
        ([ran(hours=7)], False),
        ([ran(hours=6)], False),
        ([ran(hours=8)], True),
        ([ran(Outcome.FAILED, hours=6)], False),
        ([ran(Outcome.SOME_FAILED, hours=6)], False),
        ([ran(Outcome.INTERRUPTED, hours=6)], True),
        ([ran(Outcome.INTERRUPTED, hours=5), ran(hours=6)], True),
        ([ran(hours=5), ran(Outcome.INTERRUPTED, hours=6)], False),
        ([replace(ran(Outcome.INTERRUPTED, hours=5), is_partial=True), ran(hours=6)], False),
        ([ran(Outcome.INTERRUPTED, hours=8)], True),
        ([ran(Outcome.RUNNING, hours=6)], False),
        ([ran(Outcome.RUNNING, hours=30)], True),
        ([ran(days=-365)], True),
        ([ran(days=-365), ran(hours=6)], False),
        ([replace(ran(hours=8), scheduled=LAST_TIME)], False),
    ],
)
def test_due_is_what_has_not_ended_since_its_last_time(runs: list[Run], is_due: bool) -> None:
    found = due.due(NIGHTLY, runs, NOW, UTC)
    assert (found.is_due, found.scheduled) == (is_due, LAST_TIME)


def test_without_a_calendar_nothing_is_due() -> None:
    job = replace(NIGHTLY, calendar=None)
    assert not due.due(job, [], NOW).is_due
    assert due.next_time(job, NOW) is None
    assert due.next_time(NIGHTLY, NOW, UTC) == LAST_TIME + timedelta(days=1)


@given(st.lists(st.integers(0, 23), min_size=1, max_size=6, unique=True), st.integers(0, 14 * 24 * 4))
def test_every_time_is_run_once_by_a_timer_that_looks_every_quarter(hours: list[int], start: int) -> None:
    """Whatever the calendar: with runs that end at once, there is one for each of its times."""
    job = replace(NIGHTLY, calendar=Calendar(tuple(time(hour) for hour in sorted(hours))))
    now = NOW + timedelta(minutes=15 * start)
    runs = [run(started=now, outcome=Outcome.DONE)]
    count = 0
    for _ in range(4 * 24 * 3):
        now += timedelta(minutes=15)
        if due.due(job, runs, now, UTC).is_due:
            runs.insert(0, run(started=now, outcome=Outcome.DONE))
            count += 1
    assert count == 3 * len(hours)


@pytest.mark.parametrize(
    ("window", "hour", "opens", "closes"),
    [
        (Window(time(22), time(6)), 23, None, (1, 6)),
        (Window(time(22), time(6)), 5, None, (0, 6)),
        (Window(time(22), time(6)), 6, (0, 22), None),
        (Window(time(9), time(17)), 12, None, (0, 17)),
        (Window(time(9), time(17)), 18, (1, 9), None),
        (Window(time(9), time(17)), 8, (0, 9), None),
    ],
)
def test_a_window_opens_and_closes(
    window: Window, hour: int, opens: tuple[int, int] | None, closes: tuple[int, int] | None
) -> None:
    now = datetime(2026, 11, 30, hour, 30 if hour != 6 else 0, tzinfo=UTC)

    def at(day_and_hour: tuple[int, int] | None) -> datetime | None:
        return (
            None
            if day_and_hour is None
            else datetime(2026, 11, 30, day_and_hour[1], tzinfo=UTC) + timedelta(days=day_and_hour[0])
        )

    assert due.opens(window, now, UTC) == at(opens)
    if closes is not None:
        assert due.closes(window, now, UTC) == at(closes)


def test_a_window_closes_by_the_clock_on_the_wall() -> None:
    """In the night in which clocks are put forward, it is an hour shorter."""
    berlin = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 3, 28, 23, 30, tzinfo=berlin)
    assert due.closes(Window(time(22), time(6)), now, berlin) - now == timedelta(hours=5, minutes=30)


def test_a_run_of_some_domains_is_not_that_of_the_night() -> None:
    part = replace(ran(hours=1), is_partial=True)
    assert due.due(NIGHTLY, [part], NOW, UTC).is_due
    assert not due.due(NIGHTLY, [part, ran(hours=6)], NOW, UTC).is_due
    assert not due.due(NIGHTLY, [replace(ran(Outcome.RUNNING, hours=1), is_partial=True)], NOW, UTC).is_due


def test_a_window_closes_also_in_the_second_of_two_hours() -> None:
    """In the night in which clocks are put back, 02:15 comes twice, and a window until 02:30 is open both times."""
    berlin = ZoneInfo("Europe/Berlin")
    until = Window(time(22), time(2, 30))
    first = datetime(2026, 10, 25, 2, 15, tzinfo=berlin).astimezone(UTC)
    for now in (first, first + timedelta(hours=1)):
        assert due.opens(until, now, berlin) is None
        assert due.closes(until, now, berlin) - now == timedelta(minutes=15)
    spring = datetime(2026, 3, 29, 1, 15, tzinfo=berlin).astimezone(UTC)
    assert due.closes(until, spring, berlin) - spring == timedelta(hours=1, minutes=15)  # 02:30 by the old clock


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({"hours": 7}, None),
        ({"days": 20}, None),
        ({"days": 31}, "the machine was off for long, or the clock is wrong"),
        ({"minutes": -4}, None),
        ({"hours": -1}, "the clock has been set back"),
        ({"days": -365}, "the clock has been set back"),
    ],
)
def test_a_clock_that_jumps_is_noticed(last: dict[str, float], words: str | None) -> None:
    found = due.jump(NIGHTLY, [ran(**last)], NOW)
    assert (found is None) if words is None else (found is not None and words in found.reason)


def test_a_job_that_seldom_runs_may_have_long_gaps() -> None:
    monthly: Any = replace(NIGHTLY, calendar=Calendar((time(1),), frozenset((0,))))
    assert due.jump(monthly, [ran(days=60)], NOW) is None
    assert due.jump(monthly, [ran(days=80)], NOW) is not None
    assert due.jump(replace(NIGHTLY, calendar=None), [ran(days=31)], NOW) is not None
    assert due.jump(NIGHTLY, [], NOW) is None


@pytest.mark.parametrize(
    ("runs", "now", "words"),
    [
        ([], NOW, []),
        ([ran(hours=30)], LAST_TIME + timedelta(minutes=20), []),
        ([ran(hours=30)], NOW, ["was missed; this one makes up for it."]),
        ([ran(Outcome.INTERRUPTED, hours=30)], LAST_TIME, ["did not end; this one makes up for it."]),
    ],
)
def test_a_run_that_makes_up_for_another_says_so(runs: list[Run], now: datetime, words: list[str]) -> None:
    found = due.unusual(runs, LAST_TIME, now, 0.0)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found))


def test_a_delay_that_was_asked_for_is_not_late() -> None:
    assert due.unusual([ran(hours=30)], LAST_TIME, LAST_TIME + timedelta(hours=2), 2 * 3600.0) == ()
    assert due.unusual([ran(hours=30)], None, NOW, 0.0) == ()
