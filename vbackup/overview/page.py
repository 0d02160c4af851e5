"""The report as one page: no scripts, nothing to load, readable on a telephone, by a screen reader and on paper.

Names are escaped: a domain may be called anything. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from html import escape

from vbackup.amounts import age, size
from vbackup.overview import answer, pictures
from vbackup.overview.page_style import STYLE
from vbackup.overview.points import DomainPoints, Point
from vbackup.overview.state import DomainState, Health, JobState, Overview, RepositoryState

#: Beside the colour of a state.
_SYMBOLS = {Health.OK: "✓", Health.WARNING: "▲", Health.CRITICAL: "✗", Health.UNKNOWN: "?"}
_CLASSES = {Health.OK: "ok", Health.WARNING: "warning", Health.CRITICAL: "critical", Health.UNKNOWN: "unknown"}
_NOTHING = "-"
#: Promises are in days from here on.
_FEW_HOURS = 72
#: Nothing of the page may load anything, whatever is written in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

#: What is known of the backups: by the repository's name and the domain's UUID, since two can have the same domain.
Points = Mapping[tuple[str, str], DomainPoints]


def render(overview: Overview, points: Points, zone: tzinfo | None = None) -> str:
    """Return the page. ``zone``: of the times that are shown, None: the system's."""
    return "".join(_parts(overview, points, zone))


def _parts(overview: Overview, points: Points, zone: tzinfo | None) -> Iterator[str]:
    title = f"Backups of {_text(overview.host)}"
    yield (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n<header><h1>{title}</h1>"
        f'<p class="answer {_CLASSES[overview.health]}">{_state(overview.health)}:'
        f" {_text(answer.sentence(overview))}</p>"
        f'<p class="soft">As of {_minute(overview.time, zone)}.</p></header>\n<main>'
    )
    yield from _attention(overview)
    if overview.domains:
        yield _domains(overview, zone)
    if overview.jobs:
        yield _jobs(overview.jobs, zone)
    if overview.repositories:
        yield _room(overview.repositories)
    if overview.domains:
        yield f'\n<section aria-labelledby="each"><h2 id="each">Each domain</h2>{_KEY}'
        for number, domain in enumerate(overview.domains):
            known = points.get((domain.repository, domain.uuid or ""), DomainPoints("", ())).points
            yield _domain(number, domain, known, overview.time, zone)
        yield "</section>"
    yield "</main></body></html>\n"


_KEY = (
    '<p class="soft"><span class="key full"></span>full<span class="key incremental"></span>incremental'
    '<span class="key bad"></span>damaged<span class="key none"></span>no backup</p>'
)


def _attention(overview: Overview) -> Iterator[str]:
    reasons = [
        *((one.health, f"Repository {one.name}", one.reasons) for one in overview.repositories),
        *((one.health, f"Job {one.name}", one.reasons) for one in overview.jobs),
        *((one.health, one.name, (*one.reasons, *one.unusual)) for one in overview.domains),
    ]
    wrong = sorted((one for one in reasons if one[2]), key=lambda one: -_severity(one[0]))
    yield '\n<section aria-labelledby="attention"><h2 id="attention">What needs attention</h2>'
    if not wrong and not overview.warnings:
        yield "<p>Nothing.</p></section>"
        return
    yield "<ul>"
    for health, name, sentences in wrong:
        mark = f'<span class="{_CLASSES[health]}">{_SYMBOLS[health]}</span> ' if health is not Health.OK else ""
        yield f"<li>{mark}<strong>{_text(name)}</strong>: {_text(' '.join(sentences))}"
    yield from (f"<li>{_text(warning)}" for warning in overview.warnings)
    yield "</ul></section>"


def _severity(health: Health) -> int:
    return (Health.OK, Health.WARNING, Health.UNKNOWN, Health.CRITICAL).index(health)


def _domains(overview: Overview, zone: tzinfo | None) -> str:
    rows = [
        (
            f'<a href="#domain-{number}">{_text(one.name)}</a>',
            _coloured(answer.state_of(one)),
            _NOTHING if one.last is None else _minute(one.last.time, zone),
            _NOTHING if one.age_s is None else _age(one.age_s),
            _NOTHING if one.max_age_s is None else _hours(one.max_age_s),
            str(one.backups),
            str(one.chain_images) if one.backups else _NOTHING,
            _verified(one, zone),
            _copies(one),
        )
        for number, one in enumerate(overview.domains)
    ]
    headings = ("Domain", "State", "Last backup", "Age", "Promised", "Backups", "Chain", "Verified", "Copies")
    return _section("domains", "Domains", _table(headings, rows, kind="domains"))


def _verified(domain: DomainState, zone: tzinfo | None) -> str:
    if domain.verified is None:
        return _NOTHING
    return f"{_minute(domain.verified, zone)}, {_text(domain.verdict)}"


def _copies(domain: DomainState) -> str:
    copies = [
        f"{_text(one.target)}: {'none' if one.newest is None else f'{one.behind} behind' if one.behind else 'all'}"
        for one in domain.copies
    ]
    return ", ".join(copies) or _NOTHING


def _jobs(jobs: Sequence[JobState], zone: tzinfo | None) -> str:
    rows = [
        (
            _text(one.name),
            _coloured(one.health),
            _last_run(one, zone),
            _NOTHING if one.last_good is None else _minute(one.last_good, zone),
            _NOTHING if one.next_run is None else _minute(one.next_run, zone),
        )
        for one in jobs
    ]
    headings = ("Job", "State", "Last run", "Last good run", "Next run")
    return _section("jobs", "Jobs", _table(headings, rows, kind="jobs"))


def _last_run(job: JobState, zone: tzinfo | None) -> str:
    if job.is_running:
        return "running"
    if job.last_run is None:
        return _NOTHING
    return f"{_minute(job.last_run.started, zone)}, {_text(job.last_run.outcome.value.replace('_', ' '))}"


def _room(repositories: Sequence[RepositoryState]) -> str:
    return _section("room", "Room", "".join(map(_repository, repositories)))


def _repository(one: RepositoryState) -> str:
    head = f"<article><h3>{_text(one.name)}</h3><p><code>{_text(one.path)}</code></p>"
    if one.fault is not None:
        return f'{head}<p class="critical">{_SYMBOLS[Health.CRITICAL]} {_text(one.fault.message)}</p></article>'
    if one.free_bytes is None or one.size_bytes is None:
        return f"{head}</article>"
    taken = "" if one.backups_bytes is None else f"{size(one.backups_bytes)} in backups, "
    return (
        f"{head}<figure>{pictures.room(one.free_bytes, one.size_bytes, one.backups_bytes)}<figcaption>{taken}"
        f"{size(one.free_bytes)} of {size(one.size_bytes)} free. {_forecast(one)}</figcaption></figure></article>"
    )


def _forecast(one: RepositoryState) -> str:
    if one.growth_bytes_day is None:
        return "Too few backups for a forecast."
    if one.days_until_full is None:
        return "It does not grow."
    return f"It grows by {size(int(one.growth_bytes_day))} a day, and is full in {one.days_until_full:.0f} days."


def _domain(number: int, domain: DomainState, points: Sequence[Point], now: datetime, zone: tzinfo | None) -> str:
    heading = f'<article id="domain-{number}"><h3>{_text(domain.name)} {_coloured(answer.state_of(domain))}</h3>'
    reasons = "".join(f"<p>{_text(reason)}</p>" for reason in (*domain.reasons, *domain.unusual))
    if not points:
        return f"\n{heading}{reasons}<p>No backups.</p></article>"
    today = now.astimezone(zone).date()
    pictured = (
        (pictures.calendar(points, today, zone), f"Days with a backup until {today}; a column is a week."),
        (
            pictures.chains(points),
            "Chains: squares depend on no other backup, circles on the one at the end of the line.",
        ),
        (pictures.changes(points), f"Changed data in each backup{_most(points)}."),
    )
    figures = "".join(f"<figure>{picture}<figcaption>{words}</figcaption></figure>" for picture, words in pictured)
    table = f"<details><summary>{_counted(len(points))}</summary>{_points(points, zone)}</details>"
    return f"\n{heading}{reasons}{figures}{table}</article>"


def _most(points: Sequence[Point]) -> str:
    changed = [one.changed_bytes for one in points[-pictures.SHOWN :] if one.changed_bytes is not None]
    return f"; the highest bar is {size(max(changed))}" if changed else ""


def _points(points: Sequence[Point], zone: tzinfo | None) -> str:
    """Return the table of all backups, the newest first; its style has no class in any cell, as there are thousands."""
    has_notes = any(point.note for point in points)
    rows = [
        (
            _text(one.id),
            _minute(one.time, zone),
            size(one.size_bytes),
            _NOTHING if one.changed_bytes is None else size(one.changed_bytes),
            _text(one.verdict) + (", protected" if one.is_protected else ""),
            *([_text(one.note or "")] if has_notes else []),
        )
        for one in reversed(points)
    ]
    headings = ("Backup", "Time", "Size", "Changed", "State", *(["Note"] if has_notes else []))
    return _table(headings, rows, kind="points")


def _counted(count: int) -> str:
    return "1 backup" if count == 1 else f"{count} backups"


def _section(name: str, heading: str, content: str) -> str:
    return f'\n<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{content}</section>'


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str) -> str:
    """Return a table of cells that are HTML. ``kind``: its class, which the style sheet knows.

    What HTML lets one omit is omitted: there are a hundred rows for each domain.
    """
    head = "".join(f"<th scope=col>{heading}" for heading in headings)
    body = "\n".join("<tr><td>" + "<td>".join(row) for row in rows)
    return f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{head}</thead><tbody>{body}</table></div>'


def _state(health: Health) -> str:
    return f"{_SYMBOLS[health]} {answer.WORDS[health]}"


def _coloured(health: Health) -> str:
    return f'<span class="{_CLASSES[health]}">{_state(health)}</span>'


def _age(elapsed_s: float) -> str:
    return age(timedelta(seconds=elapsed_s))


def _hours(promised_s: float) -> str:
    """Return a promise: 26 h are more than a day, which ``_age`` would round them to."""
    hours = promised_s / 3600
    return f"{hours:.0f} h" if hours < _FEW_HOURS else f"{hours / 24:.0f} d"


def _minute(time: datetime, zone: tzinfo | None) -> str:
    return time.astimezone(zone).strftime("%Y-%m-%d %H:%M")


def _text(text: str) -> str:
    """Return text for the page; what cannot be shown is escaped as Python does."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return escape(shown)
