"""No more is read than the rate allows, by all threads together, and a request to stop is noticed meanwhile."""

from __future__ import annotations

import pytest

from vbackup.errors import InterruptedBySignalError
from vbackup.repository.read_rate import ReadRate
from vbackup.stop import Stop


class Clock:
    """A time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.longest_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.longest_s = max(self.longest_s, duration_s)
        self.now_s += duration_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_reading_takes_as_long_as_the_rate_says(clock: Clock) -> None:
    rate = ReadRate(1000, check=lambda: None, clock=clock, sleep=clock.sleep)
    for _ in range(11):
        rate.take(500)
    assert clock.now_s == pytest.approx(105.0)
    assert clock.longest_s <= 0.1


def test_what_was_not_used_is_not_made_up_for(clock: Clock) -> None:
    rate = ReadRate(1000, check=lambda: None, clock=clock, sleep=clock.sleep)
    rate.take(1000)
    clock.now_s = 200.0
    for _ in range(3):
        rate.take(1000)
    assert clock.now_s == pytest.approx(202.0)


def test_no_rate_is_no_limit(clock: Clock) -> None:
    rate = ReadRate(None, check=lambda: None, clock=clock, sleep=clock.sleep)
    rate.take(1 << 60)
    assert clock.now_s == 100.0


def test_stop_ends_the_wait_and_the_reading(clock: Clock) -> None:
    stop = Stop()
    rate = ReadRate(1, check=stop.check, clock=clock, sleep=lambda _s: stop.request(2))
    rate.take(1000)
    with pytest.raises(InterruptedBySignalError):
        rate.take(1000)
    with pytest.raises(InterruptedBySignalError):
        ReadRate(None, check=stop.check).take(1)
