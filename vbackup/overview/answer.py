"""The answer in one sentence: is everything backed up? Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vbackup.overview.reasons import span
from vbackup.overview.state import DomainState, Health, Overview

#: How an answer begins; a symbol beside it says it to those who do not see colours.
WORDS = {Health.OK: "OK", Health.WARNING: "Warning", Health.CRITICAL: "Critical", Health.UNKNOWN: "Unknown"}

#: So many are named.
_NAMED = 3


def sentence(overview: Overview) -> str:
    """Return whether everything is backed up, and if not, what is wrong in the fewest words."""
    if not overview.jobs and not overview.domains and overview.health is Health.UNKNOWN:
        return "Nothing is to be backed up: there is no job and no domain."
    names = [one.name for one in overview.repositories if one.fault is not None]
    unreadable = f"{' and '.join(names)} cannot be read"
    expected = [one for one in overview.domains if not one.is_gone]
    wrong, critical = list(_counts(expected)), list(_critical(overview))
    if wrong:
        more = "".join(f"; {one}" for one in (*([unreadable] if names else ()), *critical))
        return f"NOT everything is backed up: of {_domains(len(expected))} {', '.join(wrong)}{more}."
    if names:
        return f"NOT KNOWN whether everything is backed up: {unreadable}."
    if not expected:
        return f"No domain is known that is to be backed up{''.join(f'; {one}' for one in critical)}."
    ages = [one.age_s for one in expected if one.age_s is not None]
    oldest = f", the oldest {span(max(ages))} ago" if ages else ""
    if overview.health is Health.OK:
        return f"Everything is backed up: {_domains(len(expected))}{oldest}."
    but = " and ".join(critical) or "something needs attention"
    return f"All domains ({len(expected)}) are backed up{oldest}, but {but}."


def is_good(domain: DomainState) -> bool:
    """Return True if a domain counts as backed up: in time, and no damage is known."""
    return domain.last is not None and not domain.is_overdue and domain.health is not Health.CRITICAL


def state_of(domain: DomainState) -> Health:
    """Return what to show of a domain: that it was well when its repository could be read last, is no answer."""
    return Health.UNKNOWN if domain.last_read is not None and domain.health is Health.OK else domain.health


def _counts(domains: Sequence[DomainState]) -> Iterator[str]:
    never = [one for one in domains if one.last is None]
    overdue = [one for one in domains if one.last is not None and one.is_overdue]
    rest = [one for one in domains if not is_good(one) and one not in never and one not in overdue]
    for found, what in ((never, "never backed up"), (overdue, "overdue"), (rest, "damaged or broken")):
        if found:
            yield f"{len(found)} {what}"


def _critical(overview: Overview) -> Iterator[str]:
    """Yield what else is critical: jobs that failed, repositories that are full, damage in what libvirt has no more."""
    failed = [one.name for one in overview.jobs if one.health is Health.CRITICAL]
    full = [one for one in overview.repositories if one.health is Health.CRITICAL and one.fault is None]
    damaged = [one.name for one in overview.domains if one.health is Health.CRITICAL and one.is_gone]
    if failed:
        yield f"job{'s' if len(failed) > 1 else ''} {_named(failed)} failed"
    for one in full:
        yield f"repository {one.name} is {'full' if one.free_bytes == 0 else 'nearly full'}"
    if damaged:
        yield f"backups of {_named(damaged)} (gone) are damaged or broken"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _domains(count: int) -> str:
    return f"{count} domain" if count == 1 else f"{count} domains"
