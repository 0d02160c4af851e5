"""Texts of the command line become sizes and times with one meaning, or a usage error."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.cli import values
from vbackup.config import values as grammar
from vbackup.errors import UsageError
from vbackup.fields import MAX_SIZE_BYTES
from vbackup.repository.retention import Duration

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Command


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("1000000", 1_000_000),
        ("1b", 1),
        ("50k", 50 * 1024),
        ("50K", 50 * 1024),
        ("50KiB", 50 * 1024),
        ("50KB", 50_000),
        ("50M", 50 * 1024**2),
        ("50MiB/s", 50 * 1024**2),
        ("50 MiB/s", 50 * 1024**2),
        (" 50M ", 50 * 1024**2),
        ("1.5G", 3 * 1024**3 // 2),
        ("1.5GB/s", 1_500_000_000),
        ("2t", 2 * 1024**4),
        ("1P", 1024**5),
        ("7EiB", 7 * 1024**6),
        (str(MAX_SIZE_BYTES // 1024 * 1024), MAX_SIZE_BYTES // 1024 * 1024),
    ],
)
def test_rate_has_the_units_of_virsh(text: str, expected: int) -> None:
    assert values.speed_bytes_s(text) == expected


BAD_RATES = [
    "", "fast", "-1", "+1", "0", "0.4", "1.", ".5", "1,5", "5 0", "5X", "5Mi", "5MBB", "5/s/s", "1e3", "0x10", "inf",
    "nan", "8EiB", "9" * 20, "9" * 400, "9" * 400 + "E", "\N{ARABIC-INDIC DIGIT FIVE}", "5\N{KELVIN SIGN}",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_RATES, ids=lambda text: ascii(text[:25]))
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        values.speed_bytes_s(text)


@given(st.text() | st.from_regex(r"\d{1,400}(\.\d+)?[kmgtpe]?i?b?(/s)?", fullmatch=True))
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    with suppress(argparse.ArgumentTypeError):
        assert 0 < values.speed_bytes_s(text) <= MAX_SIZE_BYTES


@pytest.mark.parametrize("text", BAD_RATES, ids=lambda text: ascii(text[:25]))
def test_bad_rate_is_a_usage_error(command: Command, tmp_path: Path, text: str) -> None:
    outcome = command("backup", "web", "-r", tmp_path, f"--speed={text}", status=2)
    assert "--speed" in outcome.stderr


# times


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone an hour ahead of UTC in November."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T10:15:00Z", (10, 15, 0)),
        ("2026-11-23T10:15:00+00:00", (10, 15, 0)),
        ("2026-11-23T10:15:00+05:30", (4, 45, 0)),
        ("20261123T101500Z", (10, 15, 0)),
        ("2026-11-23T10:15:00", (9, 15, 0)),
        ("2026-11-23 10:15", (9, 15, 0)),
        (" 2026-11-23 10:15:30 ", (9, 15, 30)),
        ("20261123T101500", (9, 15, 0)),
    ],
)
def test_time_is_local_unless_it_says_otherwise(text: str, expected: tuple[int, int, int]) -> None:
    assert values.timestamp(text) == datetime(2026, 11, 23, *expected, tzinfo=timezone.utc)


@pytest.mark.usefixtures("berlin")
def test_date_is_its_first_moment() -> None:
    assert values.timestamp("2026-11-23") == datetime(2026, 11, 22, 23, 0, tzinfo=timezone.utc)


BAD_TIMES = [
    "", "now", "yesterday", "10:15", "2026-13-01", "2026-11-31", "2026-11-23T25:00:00Z", "20261323T101500Z",
    "20261123T101500Z-full", "1", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
    "\N{ARABIC-INDIC DIGIT TWO}0261123T101500Z",
]  # fmt: skip


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-10-25 02:30", "was there twice, .*: 2026-10-25T02:30:00\\+02:00 or 2026-10-25T02:30:00\\+01:00"),
        ("20261025T020000", "was there twice"),
        (
            "2026-03-29 02:30",
            "does not exist: the clocks were put forward over it; give 2026-03-29T01:30:00 or 2026-03-29T03:30:00, or",
        ),
    ],
)
def test_local_time_that_was_there_twice_or_never_is_refused(text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        values.timestamp(text)


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    "text",
    [
        "2026-03-29T01:30:00",
        "2026-03-29T03:30:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25 03:00",
        "2026-10-25 01:59:59",
        "2026-03-29 03:00",
        "2026-10-25T02:30Z",
    ],
)
def test_time_beside_the_change_or_with_its_offset_is_taken(text: str) -> None:
    assert values.timestamp(text).isoformat().startswith(text[:10])


@pytest.mark.parametrize("text", BAD_TIMES, ids=ascii)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time like"):
        values.timestamp(text)


@given(st.text() | st.datetimes().map(str))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with suppress(argparse.ArgumentTypeError):
        assert values.timestamp(text).utcoffset() is not None


@pytest.mark.parametrize("text", BAD_TIMES, ids=ascii)
def test_bad_time_is_a_usage_error(command: Command, tmp_path: Path, text: str) -> None:
    outcome = command("restore", "web", "-r", tmp_path, "--output", tmp_path / "out", f"--at={text}", status=2)
    assert "--at" in outcome.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0.0),
        ("1.5", 1.5),
        ("3600", 3600.0),
        ("31536000", 31_536_000.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        (" 90s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        ("2min", 120.0),
        ("1d", 86400.0),
    ],
)
def test_seconds(text: str, expected: float) -> None:
    assert values.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "inf", "nan", "1e99", "1y", "m", "5m3", "31536001", "366d"])
def test_what_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time like 90, 90s, 5m or 1h30m"):
        values.seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("20", 20.0), ("20ms", 20.0), (" 500us ", 0.5), ("1.5s", 1500.0), ("60s", 60000.0)]
)
def test_latency_is_milliseconds_unless_it_says_otherwise(text: str, expected: float) -> None:
    assert values.milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "99us", "61s", "nan", "inf", "1e3", "5m", "ms", "1" * 400, "٣"])
def test_what_is_no_latency_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        values.milliseconds(text)


@given(st.text())
def test_any_text_is_a_latency_or_refused(text: str) -> None:
    with suppress(argparse.ArgumentTypeError):
        assert grammar.MIN_LATENCY_MS <= values.milliseconds(text) <= grammar.MAX_LATENCY_MS


def test_new_speed_can_be_none_at_all() -> None:
    assert values.new_speed("unlimited") is None
    assert values.new_speed("1k") == 1024
    with pytest.raises(UsageError, match=r"'Unlimited' is not a rate .*, nor 'unlimited'"):
        values.new_speed("Unlimited")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("36h", {"hours": 36}),
        ("14d", {"days": 14}),
        ("2w", {"weeks": 2}),
        ("6m", {"months": 6}),
        ("1y6m", {"years": 1, "months": 6}),
        ("1y2m3w4d5h", {"years": 1, "months": 2, "weeks": 3, "days": 4, "hours": 5}),
        ("0y1d", {"days": 1}),
        ("99999d", {"days": 99999}),
    ],
)
def test_time_to_keep_within_has_units_of_the_calendar(text: str, expected: dict[str, int]) -> None:
    assert values.keep_within(text) == Duration(text, **expected)


@pytest.mark.parametrize(
    "text", ["", "0", "7", "0d", "-1d", "1.5d", "1D", "1M", "1s", "6m1y", "1d1d", "1 d", "100000d", "1y-6m", "٣d", "d"]
)
def test_what_is_no_time_to_keep_within_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time like 36h, 14d, 2w or 1y6m"):
        values.keep_within(text)


def test_number_to_keep_is_from_one_to_a_million() -> None:
    assert [values.keep_count(text) for text in ("1", "007", "1000000")] == [1, 7, 1_000_000]
    for text in ("0", "-1", "", "1000001", "9" * 400, "1.0", "all", "٣"):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 1000000"):
            values.keep_count(text)


def test_note_is_a_line_of_text() -> None:
    assert values.note("für später") == "für später"
    with pytest.raises(argparse.ArgumentTypeError, match="the text is empty"):
        values.note("")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("localhost:8443", ("localhost", 8443)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
    ],
)
def test_place_to_listen_on(text: str, value: tuple[str, int]) -> None:
    assert values.host_and_port(text) == value


@pytest.mark.parametrize(
    "text", ["", "8443", ":8443", "host", "host:", "host:65536", "a b:1", "::1:8443", "[::1]", "a/b:1"]
)
def test_what_is_no_place_to_listen_on(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT"):
        values.host_and_port(text)


def test_offsets() -> None:
    assert [values.offset_bytes(text) for text in ("0", "65536", "4G")] == [0, 65536, 4 * 1024**3]
    for text in ("", "-1", "x", "9e9", str(2**63)):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a number of bytes"):
            values.offset_bytes(text)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026.11.23.12.31.34", "2026.11.23.12.31.34"),
        ("2026.11.23.12.31.34.", "2026.11.23.12.31.34"),
        ("0000.00.00.00.00.00.", None),
        ("1970.01.01.01.00.00", None),
        (".", None),
        (".......", None),
    ],
)
def test_time_of_a_director_can_be_none(text: str, time: str | None) -> None:
    assert values.director_time(text) == time


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("vbackup-web.2026-11-23_12.31.34_07", "2026.11.23.12.31.34"),
        ("vbackup-web2.2026-11-23_12.31.34_123", "2026.11.23.12.31.34"),
        ("vbackup-2025-01-01_01.01.01_01.2026-11-23_12.31.34_07", "2026.11.23.12.31.34"),
        ("2026.11.23.12.31.34", "2026.11.23.12.31.34"),
        ("*none*", None),
    ],
)
def test_time_of_a_director_s_job_is_in_its_name(name: str, time: str | None) -> None:
    digits = "".join(char if char in "0123456789" else "." for char in f"{name}\n")
    assert values.director_job_time(digits) == time


@pytest.mark.parametrize("text", ["2026-11-23 12:31:34", "*none*", "2026.11.23", "x", "2026.13.23.12.31.34"])
def test_what_is_no_time_of_a_director_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        values.director_time(text)
