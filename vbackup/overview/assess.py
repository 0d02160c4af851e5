"""Judge what is known: is everything backed up as it was promised? Does no I/O.

vbackup.overview.facts is what is known, vbackup.overview.state the answer; domains and jobs have judges beside this.
"""

from __future__ import annotations

from collections.abc import Sequence

from vbackup.overview import domains, jobs
from vbackup.overview.facts import Facts, RepositoryFacts
from vbackup.overview.reasons import Reasons, moment, span
from vbackup.overview.state import Health, Overview, RepositoryState

#: Days until a repository is full.
DAYS_CRITICAL, DAYS_WARNING = 1.0, 7.0
#: Part of the filesystem that is free.
FREE_CRITICAL, FREE_WARNING = 0.01, 0.05
_DAY_S = 86400
#: Jobs that are named.
_NAMED = 3


def overview(facts: Facts) -> Overview:
    """Return the answer; the domains that are not OK come first.

    Where nothing is wrong, but no domain is known that is to be backed up, it is unknown: a libvirt that answers with
    no domain, as that of another user does, must not make all well. What could not be found out is a warning.
    """
    found_jobs = tuple(jobs.judged(one, facts) for one in facts.jobs if one.job.name)
    repositories = tuple(map(_repository, facts.repositories))
    found = tuple(sorted(domains.judged(facts), key=lambda one: (-one.health, one.name, one.repository)))
    clock = jobs.doubt(facts)
    unasked = [one.job.name for one in facts.jobs if one.may_miss_domains]
    warnings = (
        *([clock] if clock is not None else []),
        *facts.warnings,
        *([_unasked([name for name in unasked if name])] if unasked else []),
    )
    healths = [one.health for one in found_jobs] + [one.health for one in found] + [one.health for one in repositories]
    worst = max(healths, default=Health.OK)
    if worst is Health.OK and all(one.is_gone for one in found):
        worst = Health.UNKNOWN
    elif warnings:
        worst = max(worst, Health.WARNING)
    return Overview(facts.time, facts.host, worst, found_jobs, found, repositories, warnings)


def _unasked(jobs: Sequence[str]) -> str:
    """Return what it means that libvirt could not be asked; without jobs, all domains are to be backed up."""
    more = f" and {len(jobs) - _NAMED} more" if len(jobs) > _NAMED else ""
    names = f" of job{'s' if len(jobs) > 1 else ''} {', '.join(jobs[:_NAMED])}{more}" if jobs else ""
    return f"New domains{names} are not known, because libvirt could not be asked which domains there are."


def _repository(one: RepositoryFacts) -> RepositoryState:
    reasons = Reasons()
    days = None
    if one.fault is not None:
        reasons.add(Health.CRITICAL, one.fault.message)
        if one.last_read is not None:
            reasons.add(Health.CRITICAL, f"What is said of its domains is of {moment(one.last_read)}.")
    if one.free_bytes is not None and one.growth_bytes_day is not None and one.growth_bytes_day > 0:
        days = one.free_bytes / one.growth_bytes_day
    if days is not None and days < DAYS_WARNING:
        is_critical = days < DAYS_CRITICAL
        reasons.add(
            Health.CRITICAL if is_critical else Health.WARNING,
            f"It is full in {span(days * _DAY_S)} if it goes on like that.",
        )
    if one.free_bytes is not None and one.size_bytes:
        part = one.free_bytes / one.size_bytes
        if part < FREE_WARNING:
            is_critical = part < FREE_CRITICAL
            reasons.add(
                Health.CRITICAL if is_critical else Health.WARNING,
                f"Only {100 * part:.1f} % of its filesystem is free.",
            )
    return RepositoryState(
        name=one.name,
        path=one.path,
        fault=one.fault,
        free_bytes=one.free_bytes,
        size_bytes=one.size_bytes,
        backups_bytes=sum(domain.seen.size_bytes for domain in one.domains) if one.fault is None else None,
        growth_bytes_day=one.growth_bytes_day,
        days_until_full=days,
        health=reasons.health,
        reasons=tuple(reasons.sentences),
    )
