"""The answer in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.overview import overviews
from vbackup.overview import answer
from vbackup.overview.state import Health, Overview

DAMAGED = overviews.domain("db", damaged=("20261130T020000Z-full",), health=Health.CRITICAL)
GONE = overviews.domain("old", is_gone=True, age_s=99 * 86400.0)
FAILED = overviews.job(health=Health.CRITICAL, reasons=("Its run failed.",))
FULL = overviews.repository(free_bytes=0, health=Health.CRITICAL)
TIGHT = overviews.repository("usb", days_until_full=0.5, health=Health.CRITICAL)
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
            overviews.overview(jobs=(FAILED,), repositories=(FULL,)),
            "All domains (1) are backed up, the oldest 6 h ago, but job nightly failed and repository main is full.",
        ),
        (
            overviews.overview(repositories=(TIGHT,)),
            "All domains (1) are backed up, the oldest 6 h ago, but repository usb is nearly full.",
        ),
        (
            overviews.overview(overviews.overdue(), jobs=(FAILED, replace(FAILED, name="weekly"))),
            "NOT everything is backed up: of 1 domain 1 overdue; jobs nightly, weekly failed.",
        ),
        (
            overviews.overview(overviews.domain(), replace(DAMAGED, is_gone=True)),
            "All domains (1) are backed up, the oldest 6 h ago, but backups of db (gone) are damaged or broken.",
        ),
        (
            overviews.overview(GONE, jobs=tuple(replace(FAILED, name=name) for name in "abcde")),
            "No domain is known that is to be backed up; jobs a, b, c and 2 more failed.",
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


def test_what_is_late_damaged_or_was_never_made_is_not_good() -> None:
    domains = (overviews.domain(), overviews.overdue(), overviews.never(), DAMAGED)
    assert [answer.is_good(one) for one in domains] == [True, False, False, False]
    assert answer.is_good(overviews.domain(health=Health.WARNING))
    assert not answer.is_good(replace(overviews.never(), health=Health.WARNING))  # that no job backs up
