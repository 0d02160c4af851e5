"""The answer in one sentence: is everything backed up? Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vbackup.overview.reasons import span
from vbackup.overview.state import DomainState, Health, Overview

#: How an answer begins; a symbol beside it says it to those who do not see colours.
WORDS = {Health.OK: "OK", Health.WARNING: "Warning", Health.CRITICAL: "Critical", Health.UNKNOWN: "Unknown"}


def sentence(overview: Overview) -> str:
    """Return whether everything is backed up, and if not, what is wrong in the fewest words."""
    if not overview.jobs and not overview.domains and overview.health is Health.UNKNOWN:
        return "Nothing is to be backed up: there is no job and no domain."
    names = [one.name for one in overview.repositories if one.fault is not None]
    unreadable = f"{' and '.join(names)} cannot be read"
    expected = [one for one in overview.domains if not one.is_gone]
    wrong = list(_counts(expected))
    if wrong:
        more = f"; {unreadable}" if names else ""
        return f"NOT everything is backed up: of {_domains(len(expected))} {', '.join(wrong)}{more}."
    if names:
        return f"NOT KNOWN whether everything is backed up: {unreadable}."
    if not expected:
        return "No domain is known that is to be backed up."
    ages = [one.age_s for one in expected if one.age_s is not None]
    oldest = f", the oldest {span(max(ages))} ago" if ages else ""
    if overview.health is Health.OK:
        return f"Everything is backed up: {_domains(len(expected))}{oldest}."
    return f"All domains ({len(expected)}) are backed up{oldest}, but something needs attention."


def _counts(domains: Sequence[DomainState]) -> Iterator[str]:
    never = [one for one in domains if one.last is None]
    overdue = [one for one in domains if one.last is not None and one.is_overdue]
    rest = [one for one in domains if one.health is Health.CRITICAL and one not in never and one not in overdue]
    for found, what in ((never, "never backed up"), (overdue, "overdue"), (rest, "damaged or broken")):
        if found:
            yield f"{len(found)} {what}"


def _domains(count: int) -> str:
    return f"{count} domain" if count == 1 else f"{count} domains"
