"""The answer in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.overview import overviews
from vbackup.overview import answer
from vbackup.overview.state import Health, Overview

DAMAGED = overviews.domain("db", damaged=("20261130T020000Z-full",), health=Health.CRITICAL)
GONE = overviews.domain("old", is_gone=True, age_s=99 * 86400.0)
WELL = overviews.overview()
UNMOUNTED = overviews.overview(repositories=(overviews.unmounted(),))


@pytest.mark.parametrize(
    ("overview", "sentence"),
    [
        (WELL, "Everything is backed up: 1 domain, the oldest 6 h ago."),
        (overviews.overview(overviews.domain(), GONE), "Everything is backed up: 1 domain, the oldest 6 h ago."),
        (
            overviews.overview(overviews.domain(), overviews.overdue(), overviews.never(), DAMAGED),
            "NOT everything is backed up: of 4 domains 1 never backed up, 1 overdue, 1 damaged or broken.",
        ),
        (
            overviews.overview(overviews.overdue(), repositories=(overviews.unmounted(),)),
            "NOT everything is backed up: of 1 domain 1 overdue; main cannot be read.",
        ),
        (UNMOUNTED, "NOT KNOWN whether everything is backed up: main cannot be read."),
        (replace(UNMOUNTED, domains=()), "NOT KNOWN whether everything is backed up: main cannot be read."),
        (
            replace(WELL, health=Health.WARNING),
            "All domains (1) are backed up, the oldest 6 h ago, but something needs attention.",
        ),
        (
            replace(WELL, domains=(), jobs=(), health=Health.UNKNOWN),
            "Nothing is to be backed up: there is no job and no domain.",
        ),
        (replace(WELL, domains=(), health=Health.UNKNOWN), "No domain is known that is to be backed up."),
        (replace(WELL, domains=(GONE,), health=Health.UNKNOWN), "No domain is known that is to be backed up."),
    ],
)
def test_sentence_is_the_answer_in_the_fewest_words(overview: Overview, sentence: str) -> None:
    assert answer.sentence(overview) == sentence
