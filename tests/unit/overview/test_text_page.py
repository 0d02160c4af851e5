"""The report as text."""

from __future__ import annotations

from dataclasses import replace
from datetime import timezone

from tests.unit.overview import overviews
from vbackup.overview import text_page
from vbackup.overview.state import Health, Overview


def lines(overview: Overview) -> list[str]:
    return text_page.render(overview, timezone.utc).splitlines()


def test_first_line_is_the_answer() -> None:
    first, second, *_ = lines(overviews.overview(overviews.domain(), overviews.overdue()))
    assert first == "CRITICAL: NOT everything is backed up: of 2 domains 1 overdue."
    assert second == "Backups of backup1, 2026-11-30 08:00"


def test_everything_has_a_line() -> None:
    shown = lines(overviews.overview(overviews.domain(), overviews.never(), repositories=(overviews.repository(),)))
    assert shown[2:] == [
        "",
        "What needs attention",
        "- new: It was never backed up.",
        "",
        "Domains",
        "NAME  STATE     LAST BACKUP       AGE  BACKUPS  VERIFIED",
        "web   OK        2026-11-30 02:00  6 h  30       good",
        "new   Critical  never                  0        unverified",
        "",
        "Jobs",
        "NAME     STATE  LAST RUN  RESULT  NEXT RUN",
        "nightly  OK     never             2026-12-01 02:00",
        "",
        "Room",
        "REPOSITORY  FREE            BACKUPS               FORECAST",
        "main        300.0 GiB free  400.0 GiB in backups  full in 150 days",
    ]


def test_nothing_that_needs_attention_has_no_heading() -> None:
    assert "What needs attention" not in lines(overviews.overview())


def test_long_sentences_are_folded_and_control_characters_escaped() -> None:
    long = overviews.overdue(reasons=("word " * 40 + "\x1b[31m",))
    shown = lines(overviews.overview(long, repositories=(replace(overviews.unmounted(), name="m\x1b"),)))
    assert shown[0].startswith("CRITICAL: NOT everything")
    assert max(map(len, shown)) <= 80
    assert "\x1b" not in "".join(shown)
    assert "m\\x1b       not readable" in shown


def test_what_is_critical_is_named_although_all_domains_are_backed_up() -> None:
    full = overviews.repository(free_bytes=0, health=Health.CRITICAL, reasons=("Only 0.0 % of it is free.",))
    shown = " ".join(lines(overviews.overview(repositories=(full,)))[:2])
    assert shown == "CRITICAL: All domains (1) are backed up, the oldest 6 h ago, but repository main is full."
