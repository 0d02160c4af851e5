"""Backups as a report draws them."""

from __future__ import annotations

import pytest

from tests.unit.overview import overviews


def test_what_has_no_base_stands_alone() -> None:
    full = overviews.point(1)
    assert full.is_whole
    assert not overviews.point(0, base=full).is_whole


@pytest.mark.parametrize(
    ("verdict", "is_bad"),
    [("good", False), ("partial", False), ("unverified", False), ("damaged", True), ("broken", True)],
)
def test_what_cannot_be_restored_whole_is_bad(verdict: str, *, is_bad: bool) -> None:
    assert overviews.point(0, verdict=verdict).is_bad is is_bad
