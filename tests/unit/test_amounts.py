"""Amounts for people."""

from __future__ import annotations

from datetime import timedelta

import pytest

from vbackup import amounts


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (1024**4, "1.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_size_is_for_people(size_bytes: int, text: str) -> None:
    assert amounts.size(size_bytes) == text


def test_no_limit_is_a_word() -> None:
    assert amounts.rate(None) == "unlimited"
    assert amounts.rate(50 * 1024**2) == "50.0 MiB/s"


@pytest.mark.parametrize(
    ("elapsed_s", "text"),
    [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86399, "23 h"), (864000, "10 d")],
)
def test_age_has_one_unit(elapsed_s: int, text: str) -> None:
    assert amounts.age(timedelta(seconds=elapsed_s)) == text
