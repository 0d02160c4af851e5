"""Times of day, days and windows have one way to be written."""

from __future__ import annotations

from datetime import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.config import times
from vbackup.config.calendar import Window

ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.times()),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.text(max_size=3), below, max_size=2)),
    max_leaves=5,
)


def test_times_of_day_are_in_order_and_each_once() -> None:
    assert times.day_times("01:00") == (time(1),)
    assert times.day_times(["13:30", "01:00", "13:30"]) == (time(1), time(13, 30))
    assert times.day_times("hourly") == tuple(time(hour) for hour in range(24))


def test_days_have_their_english_names() -> None:
    assert times.days(["sat", "Sun"]) == {5, 6}
    assert times.days("mon") == {0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22:00-06:00", Window(time(22), time(6))),
        ("09:00 - 17:00", Window(time(9), time(17))),
        ("22:00-24:00", Window(time(22), time(0))),
    ],
)
def test_window_has_a_start_and_an_end(text: str, expected: Window) -> None:
    assert times.window(text) == expected


@pytest.mark.parametrize(
    ("read", "value", "said"),
    [
        (times.day_times, "24:00", "'24:00' is not a time of day like '01:00'"),
        (times.day_times, "1:00", "not a time of day"),
        (times.day_times, ["01:00", 1], "1 is not a time of day"),
        (times.day_times, time(1), "not a time of day"),
        (times.day_times, ["hourly"], "not a time of day"),
        (times.day_times, "\N{ARABIC-INDIC DIGIT ZERO}1:00", "not a time of day"),
        (times.day_times, [], "empty"),
        (times.days, [], "never run"),
        (times.days, ["sta"], "'sta' is no day; the closest is 'sat'"),
        (times.days, ["x"], "there are: mon"),
        (times.days, 5, "5 is no day"),
        (times.window, "08:00-08:00", "never opens"),
        (times.window, "00:00-24:00", "never opens"),
        (times.window, "22:00", "not like '22:00-06:00'"),
        (times.window, "22:00-25:00", "not a time of day"),
        (times.window, ["22:00", "06:00"], "not like"),
    ],
)
def test_what_is_not_valid_is_said(read: Any, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:  # noqa: RUF043 - the text is compared below
        read(value)
    assert said in str(caught.value)


@given(st.sampled_from((times.day_times, times.days, times.window)), ANYTHING)
def test_any_value_is_read_or_refused(read: Any, value: object) -> None:
    fault = "-"
    try:
        assert read(value)
    except ValueError as err:
        fault = str(err)
    assert fault


@given(st.times(), st.times(), st.times())
def test_time_lies_in_a_window_or_in_its_complement(start: time, end: time, moment: time) -> None:
    if start != end:
        assert times.contains(Window(start, end), moment) != times.contains(Window(end, start), moment)
