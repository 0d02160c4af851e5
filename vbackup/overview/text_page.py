"""The report as text, for a mail or a terminal of 80 columns. Does no I/O."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, tzinfo

from vbackup.amounts import age, size
from vbackup.overview import answer
from vbackup.overview.state import Overview

_COLUMNS = 80
_GAP = "  "


def render(overview: Overview, zone: tzinfo | None = None) -> str:
    """Return the report; ``zone``: of its times, None: the system's."""
    return "\n".join(_lines(overview, zone)) + "\n"


def _lines(overview: Overview, zone: tzinfo | None) -> Iterator[str]:
    answered = f"{answer.WORDS[overview.health].upper()}: {_plain(answer.sentence(overview))}"
    yield from textwrap.wrap(answered, _COLUMNS, break_long_words=False, break_on_hyphens=False)
    yield f"Backups of {_plain(overview.host)}, {_minute(overview.time, zone)}"
    yield from _attention(overview)
    if overview.domains:
        yield from ("", "Domains")
        rows = [
            (
                _plain(one.name),
                answer.WORDS[answer.state_of(one)],
                "never" if one.last is None else _minute(one.last.time, zone),
                "" if one.age_s is None else age(timedelta(seconds=one.age_s)),
                str(one.backups),
                _plain(one.verdict),
            )
            for one in overview.domains
        ]
        yield from _table(("NAME", "STATE", "LAST BACKUP", "AGE", "BACKUPS", "VERIFIED"), rows)
    if overview.jobs:
        yield from ("", "Jobs")
        rows_of_jobs = [
            (
                _plain(one.name),
                answer.WORDS[one.health],
                "never" if one.last_run is None else _minute(one.last_run.started, zone),
                "" if one.last_run is None else one.last_run.outcome.value.replace("_", " "),
                "" if one.next_run is None else _minute(one.next_run, zone),
            )
            for one in overview.jobs
        ]
        yield from _table(("NAME", "STATE", "LAST RUN", "RESULT", "NEXT RUN"), rows_of_jobs)
    if overview.repositories:
        yield from ("", "Room")
        rows_of_room = [
            (
                _plain(one.name),
                "not readable" if one.fault or one.free_bytes is None else f"{size(one.free_bytes)} free",
                "" if one.backups_bytes is None else f"{size(one.backups_bytes)} in backups",
                "" if one.days_until_full is None else f"full in {one.days_until_full:.0f} days",
            )
            for one in overview.repositories
        ]
        yield from _table(("REPOSITORY", "FREE", "BACKUPS", "FORECAST"), rows_of_room)


def _attention(overview: Overview) -> Iterator[str]:
    said = [
        *((f"Repository {one.name}", one.reasons) for one in overview.repositories),
        *((f"Job {one.name}", one.reasons) for one in overview.jobs),
        *((one.name, (*one.reasons, *one.unusual)) for one in overview.domains),
    ]
    items = [f"{_plain(name)}: {_plain(' '.join(sentences))}" for name, sentences in said if sentences]
    items += [_plain(warning) for warning in overview.warnings]
    if items:
        yield from ("", "What needs attention")
    for item in items:
        yield textwrap.fill(
            item, _COLUMNS, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        yield _GAP.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()


def _minute(time: datetime, zone: tzinfo | None) -> str:
    return time.astimezone(zone).strftime("%Y-%m-%d %H:%M")


def _plain(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
