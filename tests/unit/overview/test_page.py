"""The report as a page: complete, closed, escaped, and not too large."""

from __future__ import annotations

from datetime import timezone
from html.parser import HTMLParser

import pytest

from tests.unit.overview import overviews
from vbackup.overview import page
from vbackup.overview.page_style import STYLE
from vbackup.overview.points import DomainPoints
from vbackup.overview.state import CopyState, Health, Overview

UTC = timezone.utc
POINTS = {("main", overviews.UUID): DomainPoints(overviews.UUID, tuple(overviews.chain(30)))}
HOSTILE = "<script>alert('&\"')</script>\x1b[31m\n"


class Read(HTMLParser):
    """What a page has: tags, attributes, texts by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(overview: Overview, points: page.Points | None = None) -> Read:
    return Read(page.render(overview, POINTS if points is None else points, UTC))


def test_page_has_everything_of_the_overview() -> None:
    copied = overviews.domain(copies=(CopyState("offsite", "x", overviews.NOW, 2), CopyState("usb", None, None, 30)))
    text = read(overviews.overview(copied, overviews.overdue(), overviews.never())).text
    for part in (
        "Backups of backup1",
        "✗ Critical: NOT everything is backed up: of 3 domains 1 never backed up, 1 overdue.",
        "As of 2026-11-30 08:00.",
        "db : The newest backup is 3 d old, but job nightly promises 26 h.",
        "2026-11-30 02:00 6 h 26 h 30 7 2026-11-30 03:00, good offsite: 2 behind, usb: none",
        "nightly ✓ OK - 2026-11-30 02:00 2026-12-01 02:00",
        "400.0 GiB in backups, 300.0 GiB of 1000.0 GiB free. It grows by 2.0 GiB a day, and is full in 150 days.",
        "30 backups",
        "No backups.",
    ):
        assert part in text


def test_nothing_wrong_is_said() -> None:
    assert "What needs attention Nothing." in read(overviews.overview()).text


def test_the_worst_comes_first() -> None:
    late = overviews.domain("late", health=Health.WARNING, reasons=("It is late.",))
    text = read(overviews.overview(late, overviews.never())).text
    assert text.index("It was never backed up.") < text.index("It is late.")


def test_repository_that_cannot_be_read_says_why() -> None:
    text = read(overviews.overview(repositories=(overviews.unmounted(),))).text
    assert text.count("is the disk mounted?") == 2  # in its place, and in what needs attention


def test_page_loads_nothing_and_runs_nothing() -> None:
    found = read(overviews.overview())
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(found.tags)
    assert not [one for one in found.attributes if one[1] in ("src", "style") or one[1].startswith("on")]
    assert all(value.startswith("#domain-") for _, name, value in found.attributes if name == "href")
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert any("default-src 'none'" in value for _, name, value in found.attributes if name == "content")


def test_headings_go_down_one_by_one() -> None:
    levels = [int(tag[1]) for tag in read(overviews.overview()).tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))


def test_pictures_and_tables_say_what_they_are() -> None:
    found = read(overviews.overview())
    assert found.tags.count("svg") == sum(1 for tag, name, value in found.attributes if name == "aria-label" and value)
    assert ("svg", "role", "img") in found.attributes
    assert {value for tag, name, value in found.attributes if (tag, name) == ("th", "scope")} == {"col"}


def test_links_lead_to_what_is_there() -> None:
    found = read(overviews.overview(overviews.domain(), overviews.domain("db")))
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in found.attributes if name == "href"} <= set(ids)


@pytest.mark.parametrize("member", ["name", "verdict"])
def test_hostile_text_stays_text(member: str) -> None:
    hostile = overviews.domain(**{member: HOSTILE}, health=Health.WARNING, reasons=(HOSTILE,), unusual=(HOSTILE,))
    full = overviews.point(0, id=HOSTILE, note=HOSTILE, verdict=HOSTILE)
    repository = overviews.repository(HOSTILE, path=HOSTILE)
    overview = overviews.overview(
        hostile, repositories=(repository,), jobs=(overviews.job(HOSTILE),), host=HOSTILE, warnings=(HOSTILE,)
    )
    points = {("main", overviews.UUID): DomainPoints(overviews.UUID, (full,))}
    text = page.render(overview, points, UTC)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\\x1b[31m\\n" in Read(text).text


def test_notes_have_a_column_only_if_there_are_some() -> None:
    assert "Note" not in read(overviews.overview()).text
    noted = (overviews.point(0, note="before the upgrade", is_protected=True),)
    text = read(overviews.overview(), {("main", overviews.UUID): DomainPoints(overviews.UUID, noted)}).text
    assert "good, protected before the upgrade" in text


def test_two_hundred_domains_with_sixty_backups_are_less_than_three_megabytes() -> None:
    uuids = [f"f0000000-0000-4000-8000-{number:012x}" for number in range(200)]
    domains = [overviews.domain(f"domain-{number}", uuid=uuid) for number, uuid in enumerate(uuids)]
    points = tuple(overviews.chain(60))
    text = page.render(
        overviews.overview(*domains), {("main", uuid): DomainPoints(uuid, points) for uuid in uuids}, UTC
    )
    assert len(text.encode()) < 3_000_000
