"""Pictures of backups: what they show, and what they say to those who do not see them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from tests.unit.overview import overviews
from vbackup.overview import pictures
from vbackup.overview.points import Point

TODAY = overviews.NOW.date()
UTC = timezone.utc


def shapes(svg: str) -> dict[str, int]:
    """How many shapes of each class a picture has."""
    paths = ET.fromstring(svg).iter("path")
    return {path.attrib["class"]: path.attrib["d"].count("M") for path in paths}


def words(svg: str) -> str:
    return ET.fromstring(svg).attrib["aria-label"]


def test_calendar_has_a_cell_for_each_day_and_counts_those_with_backups() -> None:
    points = overviews.chain(30)
    del points[10]
    svg = pictures.calendar(points, TODAY, UTC)
    missing = (TODAY - timedelta(days=19)).isoformat()
    assert words(svg) == f"Calendar: backups on 29 of the last 30 days; none on {missing}"
    # Thirteen weeks, the last of which has its Monday only.
    assert shapes(svg) == {"full": 1, "incremental": 28, "none": 1, "before": 12 * 7 + 1 - 30}


def test_calendar_shows_the_worst_of_a_day() -> None:
    full = overviews.point(0)
    points = [full, overviews.point(0, base=full), overviews.point(0, base=full, id="x", verdict="damaged")]
    assert shapes(pictures.calendar(points[:2], TODAY, UTC))["full"] == 1
    assert shapes(pictures.calendar(points, TODAY, UTC))["bad"] == 1


def test_calendar_is_at_most_a_year() -> None:
    points = [overviews.point(ago) for ago in (1000, 400, 1)]
    svg = pictures.calendar(points, TODAY, UTC)
    assert sum(shapes(svg).values()) == 52 * 7 + 1
    assert "backups on 1 of the last 365 days" in words(svg)
    assert words(svg).endswith("and earlier days")


def test_calendar_counts_days_of_the_zone() -> None:
    point = overviews.point(0, time=datetime(2026, 11, 29, 23, 30, tzinfo=UTC))
    assert "on 1 of the last 1 days" in words(pictures.calendar([point], TODAY, ZoneInfo("Europe/Berlin")))
    assert "on 1 of the last 2 days" in words(pictures.calendar([point], TODAY, UTC))


@pytest.mark.parametrize("points", [[], [overviews.point(-30)]])
def test_calendar_of_nothing_and_of_the_future(points: list[Point]) -> None:
    assert words(pictures.calendar(points, TODAY, UTC)).startswith("Calendar: no backup")


def test_chains_mark_what_stands_alone_and_what_is_damaged() -> None:
    points = [*overviews.chain(5), overviews.point(0, id="other", verdict="broken")]
    svg = pictures.chains(points)
    assert shapes(svg) == {"full": 1, "incremental": 4, "link": 4, "bad": 1}
    assert words(svg) == "Chains: 6 backups, 2 of which depend on no other; damaged: other"


def test_link_leads_to_the_base_even_if_it_is_not_the_one_before() -> None:
    full = overviews.point(3)
    differentials = [overviews.point(ago, base=full) for ago in (2, 1)]
    [link] = re.findall(r'class="link" d="([^"]+)"', pictures.chains([full, *differentials]))
    assert "h-12" in link  # to its neighbour
    assert "q-12 -12 -24 0" in link  # over it
    [outside] = re.findall(r'class="link" d="([^"]+)"', pictures.chains(differentials[1:]))
    assert outside == "M6 18h-6"  # to one that is not shown


def test_bars_are_as_high_as_the_changes_and_the_text_says_how_much() -> None:
    full = overviews.point(3)
    points = [full, *(overviews.point(n, base=full, changed_bytes=n * 1024**2) for n in (2, 1, 0))]
    svg = pictures.changes(points)
    [bars] = re.findall(r'class="bar" d="([^"]+)"', svg)
    assert re.findall(r"v-(\d+)", bars) == ["48", "24", "1"]
    assert words(svg) == f"Changed data of 3 incremental backups: usually 1.0 MiB, at most 2.0 MiB in {points[1].id}"
    assert words(pictures.changes([full])) == "Changed data: no incremental backup yet"


def test_only_the_newest_are_drawn() -> None:
    points = overviews.chain(300)
    assert sum(shapes(pictures.changes(points)).values()) == pictures.SHOWN
    assert shapes(pictures.chains(points))["incremental"] == pictures.SHOWN


def test_room_adds_up_and_says_so() -> None:
    svg = pictures.room(100, 1000, 600)
    assert [path.attrib["d"] for path in ET.fromstring(svg).iter("path")] == [
        "M0 0h300v12h-300z",
        "M0 0h270v12h-270z",
        "M0 0h180v12h-180z",
    ]
    assert words(svg) == "Room: 600 B of 1000 B are backups, 100 B are free"


@pytest.mark.parametrize(("free", "size", "own"), [(0, 0, None), (10, 5, 100), (0, 10, 100)])
def test_room_that_contradicts_itself_stays_in_its_bar(free: int, size: int, own: int | None) -> None:
    widths = re.findall(r"0h(\d+)v", pictures.room(free, size, own))
    assert all(int(width) <= 300 for width in widths)


def test_hostile_id_stays_text() -> None:
    point = overviews.point(0, id='"><script>alert(1)</script>', verdict="broken")
    assert "<script>" not in pictures.chains([point])
    assert "<script>" in words(pictures.chains([point]))


def test_day_after_the_last_is_not_drawn() -> None:
    svg = pictures.calendar(overviews.chain(3), date(2026, 12, 6), UTC)  # a Sunday: the week is full
    assert sum(shapes(svg).values()) == 13 * 7
