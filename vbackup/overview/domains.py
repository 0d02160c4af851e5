"""Judge the domains: is each backed up as its job promises? Does no I/O.

Critical: never backed up, overdue, the newest backup broken, damage found. Warning: its last backup failed, unusual
changes, no job, copies that are late, backups of the future. One that libvirt does not have any more is not overdue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase

from vbackup import names
from vbackup.config.model import Job
from vbackup.overview.facts import DomainFacts, Facts, JobFacts, LiveDomain, RepositoryFacts
from vbackup.overview.reasons import SLACK, Reasons, moment, span
from vbackup.overview.state import CopyState, DomainState, Health, PointState
from vbackup.repository.glance import Glance
from vbackup.runs.record import DomainResult, Fault, Run


def judged(facts: Facts) -> Iterator[DomainState]:
    """Yield the state of each domain that has backups, that a job is to back up, or that no job backs up."""
    live = {domain.uuid: domain for one in facts.jobs for domain in one.live}
    for repository in facts.repositories:
        for one in repository.domains:
            yield _backed_up(_Case.of(one, repository, facts, live.get(one.seen.uuid)))
        if repository.is_known:
            yield from _never(repository, facts)
    if facts.is_configured:
        yield from _without_job(facts)


# domains with backups


@dataclass(frozen=True)
class _Promise:
    """The job that backs a domain up, and what it promises."""

    of: JobFacts
    max_age_s: float | None
    is_named: bool  #: the job has its very name, not a pattern


@dataclass(frozen=True)
class _Case:
    """A domain that has backups in a repository, and all that is known of it."""

    seen: Glance
    copies: Mapping[str, frozenset[str]]
    repository: RepositoryFacts
    facts: Facts
    name: str
    is_live: bool
    promise: _Promise | None
    result: DomainResult | None  #: of the last run that has one
    result_of: Run | None  #: that run

    @classmethod
    def of(cls, one: DomainFacts, repository: RepositoryFacts, facts: Facts, live: LiveDomain | None) -> _Case:
        """Find out what its job is."""
        name = live.name if live is not None else one.seen.name
        promise = _promise(name, one.seen.uuid, repository.name, facts)
        run, result = _result(promise.of, name, one.seen.uuid) if promise is not None else (None, None)
        return cls(one.seen, one.copies, repository, facts, name, live is not None, promise, result, run)

    @property
    def job(self) -> str:
        """Name of its job; "" without one."""
        return self.promise.of.job.name if self.promise is not None else ""

    @property
    def jobs(self) -> list[Job]:
        """Those that ask a host that has it, whatever repository they back up to."""
        return [one.job for one in self.facts.jobs if any(live.uuid == self.seen.uuid for live in one.live)]

    @property
    def is_gone(self) -> bool:
        """True if no host has it, and all have answered that could have it."""
        if self.promise is not None:
            asked = [self.promise.of]
        else:
            asked = [one for one in self.facts.jobs if one.job.repository == self.repository.name]
        return not self.is_live and bool(asked) and all(one.is_asked for one in asked)

    @property
    def age_s(self) -> float | None:
        """The age of the newest backup, but for those of the future: they would never be too old."""
        newest, now = self.seen.newest, self.facts.time
        if newest is None:
            return None
        if newest.time <= now + SLACK:
            return max(0.0, (now - newest.time).total_seconds())
        past = [one.time for one in self.seen.latest if one.time <= now]
        return (now - max(past)).total_seconds() if past else None

    @property
    def max_age_s(self) -> float | None:
        """What is promised."""
        return self.promise.max_age_s if self.promise is not None else None

    @property
    def is_overdue(self) -> bool:
        """True if the newest backup is older than that."""
        age_s, max_age_s = self.age_s, self.max_age_s
        return age_s is not None and max_age_s is not None and age_s > max_age_s and not self.is_gone

    @property
    def fault(self) -> Fault | None:
        """Why the last run did not back it up, unless somebody has since."""
        newest = self.seen.newest
        if self.result is None or self.result_of is None or (newest and newest.time > self.result_of.started):
            return None
        return self.result.fault

    @property
    def unusual(self) -> tuple[str, ...]:
        """What is unusual about the changes in the newest backup."""
        return tuple(dict.fromkeys([*self.seen.unusual, *(self.result.unusual if self.result is not None else ())]))


def _backed_up(case: _Case) -> DomainState:
    seen, reasons, newest = case.seen, Reasons(), case.seen.newest
    copies = tuple(_copies(case))
    for health, sentence in (*_wrong(case), *_odd(case), *_late_copies(copies, case)):
        reasons.add(health, sentence)
    return DomainState(
        name=case.name,
        uuid=seen.uuid,
        repository=case.repository.name,
        job=case.job or None,
        last=PointState(newest.id, newest.time, newest.level, newest.size_bytes) if newest is not None else None,
        age_s=case.age_s,
        max_age_s=case.max_age_s,
        is_overdue=case.is_overdue,
        backups=len(seen.ids),
        chain_images=seen.chain_images,
        verified=seen.verified,
        verdict=seen.verdict.value if seen.verdict is not None else "unverified",
        damaged=seen.damaged,
        copies=copies,
        fault=case.fault,
        unusual=case.unusual,
        changed_bytes=tuple((each.time, each.changed_bytes) for each in seen.latest),
        health=reasons.health,
        reasons=tuple(reasons.sentences),
        is_gone=case.is_gone,
        size_bytes=seen.size_bytes,
        last_read=case.repository.last_read,
    )


def _wrong(case: _Case) -> Iterator[tuple[Health, str]]:
    """Yield why it is not backed up as it should be."""
    seen = case.seen
    if seen.broken is not None:
        yield Health.CRITICAL, seen.broken
    elif seen.newest is None and not case.is_gone:
        yield Health.CRITICAL, "It was never backed up: none of its backups was completed."
    if case.is_overdue:
        promise = f"job {case.job} promises" if case.job else "it may be"
        ages = span(case.age_s or 0.0), span(case.max_age_s or 0.0)
        yield Health.CRITICAL, f"The newest backup is {ages[0]} old; {promise} {ages[1]} at most."
    if seen.damaged:
        which = f"backup {seen.damaged[0]}" if len(seen.damaged) == 1 else f"{len(seen.damaged)} backups"
        newest = f", the newest of them {seen.damaged[-1]}" if len(seen.damaged) > 1 else ""
        yield Health.CRITICAL, f"A verify has found damage in {which}{newest}."
    if case.fault is not None:
        yield Health.WARNING, f"The last backup failed: {case.fault.message}"


def _odd(case: _Case) -> Iterator[tuple[Health, str]]:
    """Yield what somebody should look at, although it is backed up."""
    for sentence in case.unusual:
        yield Health.WARNING, sentence
    if case.is_gone and case.promise is not None and case.promise.is_named:
        yield Health.WARNING, f"libvirt does not have it any more, but job {case.job} names it."
    domain = LiveDomain(case.name, case.seen.uuid)
    if case.is_live and case.promise is None and case.facts.is_configured and not _is_meant(domain, case.jobs):
        yield Health.WARNING, "No job backs it up any more."
    now = case.facts.time
    ahead = [one.id for one in case.seen.latest if one.time > now + SLACK]
    if ahead:
        which = f"Backup {ahead[0]} was" if len(ahead) == 1 else f"{len(ahead)} backups, such as {ahead[-1]}, were"
        yield (
            Health.WARNING,
            f"{which} made later than now by the clock of {case.facts.host} ({moment(now)}), which is, or was, wrong.",
        )


def _result(job: JobFacts, name: str, uuid: str | None) -> tuple[Run, DomainResult] | tuple[None, None]:
    """Return what a job did for a domain, and in which run; a run of other domains says nothing of it."""
    for run in job.latest_runs:
        for one in run.domains:
            if one.uuid == uuid if one.uuid and uuid else one.name == name:
                return run, one
    return None, None


# copies


def _copies(case: _Case) -> Iterator[CopyState]:
    """Yield what is at each target that the job copies to, and at each that is known and has something of it."""
    wanted = case.promise.of.job.copy_to if case.promise is not None else ()
    for target in dict.fromkeys([*wanted, *sorted(case.copies)]):
        # Of a target that the job copies to, no ledger means that nothing was ever copied there.
        if target in wanted or target in case.repository.targets:
            there = case.copies.get(target, frozenset())
            newest = max(there, key=names.stamp_of, default=None)
            stamp = names.stamp_of(newest) if newest is not None else ""
            behind = sum(names.stamp_of(each) > stamp and each not in there for each in case.seen.ids)
            yield CopyState(target, newest, _time_of(newest), behind)


def _time_of(backup_id: str | None) -> datetime | None:
    """Return the time in an id, to the second."""
    if backup_id is None:
        return None
    return datetime.strptime(names.stamp_of(backup_id), "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)


def _late_copies(copies: Sequence[CopyState], case: _Case) -> Iterator[tuple[Health, str]]:
    """Yield a sentence for each target whose newest copy is older than a backup may be, while there are newer ones."""
    max_age_s, now = case.max_age_s, case.facts.time
    for copy in copies:
        if copy.behind == 0 or max_age_s is None or case.is_gone:
            continue
        oldest = copy.time or min((one.time for one in case.seen.latest), default=now)
        age_s = (now - oldest).total_seconds()
        if age_s > max_age_s:
            yield (
                Health.WARNING,
                f"None of its backups was ever copied to {copy.target}."
                if copy.time is None
                else f"The newest copy at {copy.target} is {span(age_s)} old; newer backups not there: {copy.behind}.",
            )


# domains without backups


def _never(repository: RepositoryFacts, facts: Facts) -> Iterator[DomainState]:
    """Yield the domains that jobs are to back up there, and that have no backups."""
    seen = {one.seen.uuid for one in repository.domains}
    known = {one.seen.name for one in repository.domains}
    told: set[str] = set()
    for one in facts.jobs:
        if one.job.repository != repository.name:
            continue
        there = {live.name for live in one.live}
        uuids = {*seen, *(live.uuid for live in one.live)}
        for live in one.live:
            is_expected = live.why_not is None and _selects(one.job, live)
            if is_expected and live.uuid not in seen and live.uuid not in told:
                told.update((live.uuid, live.name))
                yield _unsaved(live, one, facts, "It was never backed up.")
        where = "libvirt does not have it" if one.is_asked else "libvirt could not be asked for it"
        for word in one.job.domains:
            if not names.is_pattern(word) and word not in there | known | told and word.lower() not in uuids:
                told.add(word)
                yield _unsaved(LiveDomain(word, ""), one, facts, f"It was never backed up, and {where}.")


def _unsaved(live: LiveDomain, one: JobFacts, facts: Facts, sentence: str) -> DomainState:
    _, result = _result(one, live.name, live.uuid or None)
    fault = result.fault if result is not None else None
    return replace(
        _empty(live, one.job.repository),
        job=one.job.name or None,
        max_age_s=_max_age_s(one.job, facts),
        fault=fault,
        health=Health.CRITICAL,
        reasons=(sentence,) if fault is None else (sentence, f"The last backup failed: {fault.message}"),
    )


def _without_job(facts: Facts) -> Iterator[DomainState]:
    """Yield the domains of libvirt that no job backs up, that nobody has excluded, and that have no backups."""
    known = {one.seen.uuid for repository in facts.repositories for one in repository.domains}
    asking: dict[str, list[Job]] = {}
    found: dict[str, LiveDomain] = {}
    for one in facts.jobs:
        for live in one.live:
            found[live.uuid] = live
            asking.setdefault(live.uuid, []).append(one.job)
    for uuid, live in found.items():
        if uuid not in known and live.why_not is None and not _is_meant(live, asking[uuid]):
            reason = "It was never backed up: no job backs it up, and none excludes it."
            yield replace(_empty(live, ""), health=Health.WARNING, reasons=(reason,))


def _empty(live: LiveDomain, repository: str) -> DomainState:
    return DomainState(
        name=live.name,
        uuid=live.uuid or None,
        repository=repository,
        job=None,
        last=None,
        age_s=None,
        max_age_s=None,
        is_overdue=False,
        backups=0,
        chain_images=0,
        verified=None,
        verdict="unverified",
        damaged=(),
        copies=(),
        fault=None,
        unusual=(),
        changed_bytes=(),
        health=Health.OK,
        reasons=(),
    )


# which job


def _promise(name: str, uuid: str, repository: str, facts: Facts) -> _Promise | None:
    """Return the job that backs a domain up to that repository; of several, the one that promises most."""
    domain = LiveDomain(name, uuid)
    found = [
        _Promise(one, _max_age_s(one.job, facts), any(_is(word, domain) for word in one.job.domains))
        for one in facts.jobs
        if one.job.repository == repository and _selects(one.job, domain)
    ]
    return min(found, key=lambda one: (one.max_age_s is None, one.max_age_s or 0.0), default=None)


def _max_age_s(job: Job, facts: Facts) -> float | None:
    return facts.max_age_s if facts.max_age_s is not None else job.max_age_s


def _selects(job: Job, domain: LiveDomain) -> bool:
    """Return True if the job backs the domain up, as vbackup.domain.selection chooses."""
    if _is_excluded(job, domain):
        return False
    return not job.domains or any(_matches(word, domain) for word in job.domains)


def _is_meant(domain: LiveDomain, jobs: Sequence[Job]) -> bool:
    """Return True if one of the jobs backs the domain up, or leaves it out on purpose."""
    return any(_selects(job, domain) or _is_excluded(job, domain) for job in jobs)


def _is_excluded(job: Job, domain: LiveDomain) -> bool:
    return any(_matches(word, domain) for word in job.exclude)


def _matches(word: str, domain: LiveDomain) -> bool:
    return _is(word, domain) or fnmatchcase(domain.name, word)


def _is(word: str, domain: LiveDomain) -> bool:
    """Return True if the word is the very name or UUID of the domain."""
    return word == domain.name or word.lower() == domain.uuid
