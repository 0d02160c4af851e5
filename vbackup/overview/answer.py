"""The answer in one sentence: is everything backed up? Does no I/O."""

from __future__ import annotations

from vbackup.overview.state import DomainState, Health, Overview

#: How an answer begins; a symbol beside it says it to those who do not see colours.
WORDS = {Health.OK: "OK", Health.WARNING: "Warning", Health.CRITICAL: "Critical", Health.UNKNOWN: "Unknown"}


def sentence(overview: Overview) -> str:
    """Return how many domains are backed up as promised, and what is wrong in the fewest words."""
    domains = overview.domains
    unreadable = sum(one.fault is not None for one in overview.repositories)
    if not domains:
        if unreadable:
            return f"Not known: {_counted(unreadable, 'repository', 'repositories')} cannot be read."
        return "No domain has been backed up yet." if not overview.jobs else "No job has backed up a domain yet."
    good = [one for one in domains if is_good(one)]
    all_good = f"All {len(domains)} domains are"
    some = f"{len(good)} of {_counted(len(domains), 'domain', 'domains')} {'is' if len(good) == 1 else 'are'}"
    parts = [f"{all_good if len(good) == len(domains) > 1 else some} backed up"]
    never = sum(one.last is None for one in domains)
    overdue = sum(one.is_overdue and one.last is not None for one in domains)
    damaged = sum(bool(one.damaged) for one in domains)
    missed = sum(one.is_missed for one in overview.jobs)
    parts += [f"{never} never backed up"] if never else []
    parts += [f"{overdue} overdue"] if overdue else []
    parts += [f"{damaged} with damage"] if damaged else []
    parts += [f"{_counted(unreadable, 'repository', 'repositories')} cannot be read"] if unreadable else []
    parts += [f"{_counted(missed, 'job', 'jobs')} missed a run"] if missed else []
    return "; ".join(parts) + "."


def is_good(domain: DomainState) -> bool:
    """Return True if the newest backup of the domain is as young as promised, and no damage is known."""
    return domain.last is not None and not domain.is_overdue and not domain.damaged


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
