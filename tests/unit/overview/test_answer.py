"""The answer in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.overview import overviews
from vbackup.overview import answer
from vbackup.overview.state import Overview


@pytest.mark.parametrize(
    ("overview", "sentence"),
    [
        (overviews.overview(), "1 of 1 domain is backed up."),
        (overviews.overview(overviews.domain(), overviews.domain("db")), "All 2 domains are backed up."),
        (
            overviews.overview(overviews.domain(), overviews.overdue(), overviews.never()),
            "1 of 3 domains is backed up; 1 never backed up; 1 overdue.",
        ),
        (
            overviews.overview(overviews.domain(), overviews.domain("db", damaged=("20261130T020000Z-full",))),
            "1 of 2 domains is backed up; 1 with damage.",
        ),
        (
            overviews.overview(repositories=(overviews.unmounted(),)),
            "1 of 1 domain is backed up; 1 repository cannot be read.",
        ),
        (
            overviews.overview(jobs=(overviews.job(is_missed=True),)),
            "1 of 1 domain is backed up; 1 job missed a run.",
        ),
        (
            replace(overviews.overview(repositories=(overviews.unmounted(),)), domains=()),
            "Not known: 1 repository cannot be read.",
        ),
        (replace(overviews.overview(), domains=(), jobs=()), "No domain has been backed up yet."),
        (replace(overviews.overview(), domains=()), "No job has backed up a domain yet."),
    ],
)
def test_sentence_counts_what_is_good_and_what_is_not(overview: Overview, sentence: str) -> None:
    assert answer.sentence(overview) == sentence
