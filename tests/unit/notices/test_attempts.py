"""Attempts go on until one works or the time is over, and none takes longer than it may."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vbackup.errors import NoticeError, Retry
from vbackup.notices import attempts
from vbackup.notices.attempts import bounded, until_sent


class Clock:
    """A clock that moves only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def failing(times: int, clock: Clock, *, takes_s: float = 0.0, **error: object) -> tuple[Callable[[float], str], list]:  # type: ignore[type-arg]
    limits: list[float] = []

    def attempt(limit_s: float) -> str:
        limits.append(limit_s)
        clock.now += min(takes_s, limit_s)
        if len(limits) <= times:
            raise NoticeError("ops", f"attempt {len(limits)}", **error)  # type: ignore[arg-type]
        return "sent"

    return attempt, limits


def sent(attempt: Callable[[float], str], timeout_s: float, clock: Clock) -> str:
    return until_sent(attempt, timeout_s, clock=lambda: clock.now, sleep=clock.sleep)


def test_pauses_become_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 1.0)
    clock = Clock()
    attempt, _ = failing(4, clock)
    assert sent(attempt, 30, clock) == "sent"
    assert clock.slept == [1, 2, 4, 8]


def test_last_error_is_raised_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 1.0)
    clock = Clock()
    attempt, _ = failing(99, clock)
    with pytest.raises(NoticeError, match="attempt 5"):
        sent(attempt, 30, clock)
    assert clock.now <= 1030


def test_no_attempt_follows_one_that_says_so() -> None:
    clock = Clock()
    attempt, limits = failing(99, clock, retry=Retry.NEVER)
    with pytest.raises(NoticeError, match="attempt 1"):
        sent(attempt, 30, clock)
    assert len(limits) == 1


def test_server_says_when_to_ask_again() -> None:
    clock = Clock()
    attempt, _ = failing(1, clock, not_before_s=7.0)
    assert sent(attempt, 30, clock) == "sent"
    assert clock.slept == [7.0]


def test_server_that_wants_more_time_than_there_is_is_not_asked_again() -> None:
    clock = Clock()
    attempt, limits = failing(1, clock, not_before_s=3600.0)
    with pytest.raises(NoticeError):
        sent(attempt, 30, clock)
    assert len(limits) == 1


def test_attempt_that_hangs_leaves_time_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 1.0)
    clock = Clock()
    attempt, limits = failing(99, clock, takes_s=99)
    with pytest.raises(NoticeError):
        sent(attempt, 30, clock)
    assert limits[0] == 20
    assert len(limits) > 1
    assert clock.now <= 1030


def test_bounded_work_returns_and_raises_what_it_does() -> None:
    assert bounded(lambda: 7, 5) == 7
    assert bounded(lambda: None, 5) is None
    with pytest.raises(KeyError):
        bounded(lambda: {}["x"], 5)


def test_work_that_does_not_end_is_left() -> None:
    over = threading.Event()
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        bounded(lambda: over.wait(10), 0.1)
    assert time.monotonic() - begun < 5
    over.set()
