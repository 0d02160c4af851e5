"""The grammar that options and configuration share; tests/unit/cli/test_values.py has the examples of options."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.config import values
from vbackup.fields import MAX_SIZE_BYTES

READERS: list[Callable[[str], Any]] = [
    values.memory_bytes, values.speed_bytes_s, values.seconds, values.positive_seconds, values.age_s, values.delay_s,
    values.freeze_limit_s, values.milliseconds, values.count, values.percent, values.keep_count, values.keep_within,
    values.host_and_port, values.host_and_ports, values.absolute_directory, values.guest_command,
    values.console_pattern, values.note,
]  # fmt: skip


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (values.memory_bytes, "512M", 512 * 1024**2),
        (values.speed_bytes_s, "50MiB/s", 50 * 1024**2),
        (values.seconds, "1h30m", 5400),
        (values.seconds, "0", 0),
        (values.positive_seconds, "500ms", 0.5),
        (values.delay_s, "10m", 600),
        (values.age_s, "26h", 26 * 3600),
        (values.age_s, "4w", 28 * 86400),
        (values.age_s, "3600", 3600),
        (values.freeze_limit_s, "1m", 60),
        (values.milliseconds, "0.5s", 500),
        (values.count, "1000", 1000),
        (values.percent, "0.5%", 0.5),
        (values.keep_count, "1000000", 1_000_000),
        (values.keep_within, "1y6m", {"years": 1, "months": 6, "weeks": 0, "days": 0, "hours": 0}),
        (values.host_and_port, "[::1]:8443", ("::1", 8443)),
        (values.host_and_ports, "b.example:10809-10812", ("b.example", range(10809, 10813))),
        (values.absolute_directory, "/etc/pki", "/etc/pki"),
        (values.guest_command, "systemctl 'is active'", "systemctl 'is active'"),
        (values.console_pattern, "login: $", "login: $"),
        (values.note, "before the upgrade", "before the upgrade"),
    ],
)
def test_text_has_one_meaning(read: Callable[[str], Any], text: str, expected: object) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (values.memory_bytes, "15M", "from 16M up"),
        (values.speed_bytes_s, "0", f"from 1 to {MAX_SIZE_BYTES}"),
        (values.speed_bytes_s, "fast", "is not a rate"),
        (values.seconds, "53w", "up to a year"),
        (values.positive_seconds, "0", "not more than 0"),
        (values.delay_s, "25h", "up to a day"),
        (values.age_s, "59s", "from a minute"),
        (values.age_s, "366d", "to a year"),
        (values.age_s, "1y", "like 26h"),
        (values.freeze_limit_s, "601", "from 1 to 600"),
        (values.milliseconds, "61s", "0.1ms to 60s"),
        (values.count, "0", "from 1 to 1000"),
        (values.percent, "0", "above 0"),
        (values.keep_count, "0", "leave out a rule"),
        (values.keep_within, "6m1y", "in this order"),
        (values.host_and_port, "localhost", "HOST:PORT"),
        (values.host_and_ports, "b:20-10", "HOST:PORT-PORT"),
        (values.absolute_directory, "etc", "absolute"),
        (values.guest_command, "'", "told apart"),
        (values.guest_command, " ", "empty"),
        (values.console_pattern, ".*", "nothing is"),
        (values.console_pattern, "(", "regular expression"),
        (values.note, "a\nb", "printed"),
    ],
)
def test_what_is_not_valid_is_said_with_what_is(read: Callable[[str], Any], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read(text)


@given(st.sampled_from(READERS), st.text(max_size=30))
def test_any_text_has_a_meaning_or_is_refused(read: Callable[[str], Any], text: str) -> None:
    fault = "-"
    try:
        assert read(text) is not None
    except ValueError as err:
        fault = str(err)
    assert fault


def test_size_beyond_all_limits_is_just_beyond_them() -> None:
    assert values.size_bytes("9" * 400) == MAX_SIZE_BYTES + 1
    assert values.size_bytes("x") is None
