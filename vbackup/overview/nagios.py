"""The state of everything as a plugin of Nagios says it: one line with performance data, and a status. Does no I/O.

Icinga, Checkmk (local and MRPE checks), Zabbix and many others read the same. https://nagios-plugins.org/doc/guidelines.html
"""

from __future__ import annotations

from collections.abc import Iterator

from vbackup.overview import answer
from vbackup.overview.reasons import span
from vbackup.overview.state import Health, Overview, RepositoryState

#: A line is cut by some readers after a few kilobytes: so many reasons are told, of so many characters each.
REASONS, CHARACTERS = 5, 200
_WORDS = {Health.OK: "OK", Health.WARNING: "WARNING", Health.CRITICAL: "CRITICAL", Health.UNKNOWN: "UNKNOWN"}


def line(overview: Overview) -> str:
    """Return the line; the exit status that belongs to it is ``overview.health``."""
    return f"VBACKUP {_WORDS[overview.health]} - {_clean(_text(overview))} | {' '.join(_data(overview))}"


def unknown(message: str) -> str:
    """Return the line for a state that could not be found out; its status is Health.UNKNOWN."""
    return f"VBACKUP UNKNOWN - {_clean(message)}"


def _text(overview: Overview) -> str:
    if overview.health is Health.UNKNOWN:
        return "; ".join([answer.sentence(overview).rstrip("."), *map(_cut, overview.warnings[:REASONS])])
    reasons = [_cut(one) for one in _reasons(overview)]
    more = f"; and {len(reasons) - REASONS} more" if len(reasons) > REASONS else ""
    return "; ".join([_summary(overview), *reasons[:REASONS]]) + more


def _summary(overview: Overview) -> str:
    """Return how many domains are backed up, and how old the oldest of their newest backups is."""
    # Of a repository that cannot be read, what was wrong is wrong still, and what was well is not known.
    expected = [one for one in overview.domains if not one.is_gone and answer.state_of(one) is not Health.UNKNOWN]
    unread = [one.name for one in overview.repositories if one.fault is not None]
    if unread and not expected:
        return f"not known whether domains are backed up: {' and '.join(unread)} cannot be read"
    good = [one for one in expected if answer.is_good(one)]
    ages = [one.age_s for one in expected if one.age_s is not None]
    oldest = f", the oldest {span(max(ages))} ago" if ages else ""
    return f"{len(good)} of {len(expected)} domains backed up{oldest}{', more are not known' if unread else ''}"


def _reasons(overview: Overview) -> Iterator[str]:
    """Yield what is not OK, the worst first; of each domain, job and repository its first reason."""
    found = [
        *((one.health, f"repository {one.name}", one.reasons) for one in overview.repositories),
        *((one.health, f"job {one.name}", one.reasons) for one in overview.jobs),
        *((one.health, one.name, one.reasons) for one in overview.domains),
    ]
    yield from overview.warnings
    for _, name, reasons in sorted(found, key=lambda one: -one[0]):
        if reasons:
            yield f"{name}: {reasons[0]}"


def _data(overview: Overview) -> Iterator[str]:
    """Yield performance data: 'label'=value[unit];warn;crit;min;max."""
    domains = [one for one in overview.domains if not one.is_gone]
    counts = {
        "domains": len(domains),
        "overdue": sum(one.is_overdue for one in domains),
        "never": sum(one.last is None for one in domains),
        "damaged": sum(bool(one.damaged) for one in overview.domains),
        "jobs_not_ok": sum(one.health is not Health.OK for one in overview.jobs),
    }
    for name, number in counts.items():
        yield f"{name}={number};;;0"
    ages = [one.age_s for one in domains if one.age_s is not None]
    if ages:
        yield f"oldest={max(ages):.0f}s;;;0"
    for one in overview.repositories:
        yield from _room(one)


def _room(one: RepositoryState) -> Iterator[str]:
    if one.free_bytes is not None and one.size_bytes is not None:
        yield f"'{_label(one.name)} free'={one.free_bytes}B;;;0;{one.size_bytes}"


def _label(name: str) -> str:
    """Return a name without what a label must not have."""
    return "".join("_" if char in "='|" or not char.isprintable() else char for char in name)


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 3]}..."


def _clean(text: str) -> str:
    """Return the text in one line, without the bar that ends it."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).replace("|", "/").split())
