"""Decide what a notifier is told after a run, and what it has been told afterwards. Does no I/O.

Each thing is told once: a failure until other things fail or a run is good again, a domain that is overdue until it is
not any more, what is unusual in the first run in which it was seen: a backup of the future is there for long. What
could not be sent is told with the next run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from vbackup.config.model import When
from vbackup.notices.told import Failure, Told
from vbackup.overview.state import DomainState, Overview
from vbackup.runs.record import Outcome, Run, Step

#: Outcomes of what did not do what it should.
BAD = frozenset((Outcome.SOME_FAILED, Outcome.FAILED, Outcome.INTERRUPTED))
#: So many sentences that could not be sent are kept.
_MAX_UNSENT = 50


@dataclass(frozen=True)
class Occasion:
    """What there is to say to one notifier."""

    reasons: tuple[When, ...]  #: why it is told, the worst first; empty: it is not
    run: Run | None  #: None: no run of a job that it is told about
    overdue: tuple[DomainState, ...]  #: those that it was not told about yet
    recovered: tuple[str, ...]  #: names of the domains that were overdue and are not any more
    unusual: tuple[str, ...]  #: sentences
    failed_since: datetime | None  #: when the first of the failed runs began, of a job that works again or still fails
    was_told: bool  #: False: a message on that failure could not be sent
    if_sent: Told  #: what it has been told once the message was sent
    if_not: Told  #: what it has been told if the message cannot be sent


def is_bad(run: Run) -> bool:
    """Return True if the run did not do all that it should."""
    return run.outcome in BAD or (run.outcome is not Outcome.RUNNING and run.status != 0)


def decide(
    wanted: Collection[When],
    told: Told,
    *,
    run: Run | None,
    overview: Overview | None,
    jobs: Collection[str] | None,
) -> Occasion:
    """Return what a notifier is told that wants to hear of ``wanted`` and ``jobs`` (None: of all)."""
    if run is not None and jobs is not None and run.job not in jobs:
        run = None
    before = told.failures.get(run.job) if run is not None else None
    failures = dict(told.failures)
    is_failure_new = is_recovered = False
    if run is not None and is_bad(run):
        faults = faults_of(run)
        is_failure_new = before is None or not before.is_told or before.faults != faults
        failures[run.job] = Failure(faults, run.started.isoformat() if before is None else before.since, is_told=True)
    elif run is not None and not run.is_partial:
        is_recovered = failures.pop(run.job, None) is not None

    states = () if overview is None else tuple(one for one in overview.domains if jobs is None or one.job in jobs)
    late = {_key(one): one for one in states if one.is_overdue}
    on_time = {_key(one): one.name for one in states if not one.is_overdue}
    known = {_key(one) for one in states}
    covered = () if overview is None else tuple(f"{job.name}/" for job in overview.jobs)
    gone = {key for key in told.overdue if key not in known and key.startswith(covered)}
    overdue = tuple(one for key, one in late.items() if key not in told.overdue)
    recovered = tuple(sorted(name for key, name in on_time.items() if key in told.overdue))
    seen = () if run is None else unusual_of(run)
    known_as_unusual = () if run is None else told.unusual.get(run.job, ())
    unusual = (*told.unsent, *(one for one in seen if one not in known_as_unusual))

    is_so = {
        When.FAILURE: is_failure_new,
        When.OVERDUE: bool(overdue),
        When.UNUSUAL: bool(unusual),
        When.RECOVERY: is_recovered or bool(recovered),
        When.ALWAYS: run is not None,
    }
    asked = set(When) if When.ALWAYS in wanted else set(wanted)
    reasons = tuple(when for when, so in is_so.items() if so and when in asked)
    if_sent = replace(
        told,
        failures=failures,
        overdue=frozenset((told.overdue - on_time.keys() - gone) | late.keys()),
        unusual=told.unusual if run is None else _with(told.unusual, run.job, seen),
        unsent=(),
    )
    return Occasion(
        reasons=reasons,
        run=run,
        overdue=overdue,
        recovered=recovered,
        unusual=unusual,
        failed_since=None if before is None else _time(before.since),
        was_told=before is None or before.is_told,
        if_sent=if_sent,
        if_not=_unsent(told, if_sent, run, before, unusual if When.UNUSUAL in reasons else ()),
    )


def _unsent(told: Told, if_sent: Told, run: Run | None, before: Failure | None, unusual: tuple[str, ...]) -> Told:
    """Return what it has been told without the message: a recovery and what is overdue are told with the next one."""
    failures = dict(told.failures)
    if run is not None and run.job in if_sent.failures:
        failure = if_sent.failures[run.job]
        is_told = before is not None and before.is_told and before.faults == failure.faults
        failures[run.job] = replace(failure, is_told=is_told)
    return replace(told, failures=failures, unusual=if_sent.unusual, unsent=unusual[-_MAX_UNSENT:])


def _with(before: Mapping[str, tuple[str, ...]], job: str, sentences: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    others = {name: said for name, said in before.items() if name != job}
    return {**others, job: sentences} if sentences else others


def faults_of(run: Run) -> tuple[str, ...]:
    """Return what failed in a run, without what differs from night to night: step, target, domain and code."""
    found = set()
    for step in run.steps:
        if step.outcome in BAD:
            found |= {f"{_named(step)}/{fault.domain or ''}/{fault.code}" for fault in step.faults}
            if not step.faults:
                found.add(f"{_named(step)}//{step.outcome.value}/{step.status}")
    for domain in run.domains:
        if domain.outcome in BAD:
            found.add(f"backup//{domain.name}/{domain.fault.code if domain.fault else domain.outcome.value}")
    return tuple(sorted(found)) or (f"run/{run.outcome.value}/{run.status}",)


def _named(step: Step) -> str:
    return f"{step.kind.value}/{step.target or ''}"


def unusual_of(run: Run) -> tuple[str, ...]:
    """Return the sentences on what was unusual in a run, those on a domain with its name."""
    return (*run.unusual, *(f"{one.name}: {sentence}" for one in run.domains for sentence in one.unusual))


def _key(state: DomainState) -> str:
    return f"{state.job or ''}/{state.repository}/{state.name}"


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
