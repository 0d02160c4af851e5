"""Reasons add up to the worst, and ages are told in the unit that promises are made in."""

from __future__ import annotations

import pytest

from vbackup.overview.reasons import Reasons, span
from vbackup.overview.state import Health


def test_the_worst_reason_counts_and_all_are_told() -> None:
    reasons = Reasons()
    assert (reasons.health, reasons.sentences) == (Health.OK, [])
    reasons.add(Health.CRITICAL, "One.")
    reasons.add(Health.WARNING, "Two.")
    assert (reasons.health, reasons.sentences) == (Health.CRITICAL, ["One.", "Two."])


@pytest.mark.parametrize(
    ("elapsed_s", "text"),
    [(0, "0 min"), (2400, "40 min"), (3600, "1 h"), (26 * 3600, "26 h"), (71.4 * 3600, "71 h"), (9 * 86400, "9 d")],
)
def test_ages_in_words(elapsed_s: float, text: str) -> None:
    assert span(elapsed_s) == text
