"""Judge the jobs by their runs, and the clock by the newest of them. Does no I/O.

Critical: the last run failed. Warning: a part of it failed, it was interrupted or missed, there never was one. A run of
other domains than the job has says nothing of the job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from vbackup.config.model import Job
from vbackup.overview.facts import Facts, JobFacts
from vbackup.overview.reasons import SLACK, Reasons, moment, span
from vbackup.overview.state import Health, JobState
from vbackup.runs import due
from vbackup.runs.record import Fault, Outcome, Run

#: A run that has not begun so long after its time was missed.
GRACE = timedelta(minutes=15)
#: How many faults of a run are told.
_FAULTS = 3


def judged(one: JobFacts, facts: Facts) -> JobState:
    """Return the state of a job."""
    job, now, reasons = one.job, facts.time, Reasons()
    newest, runs = one.runs[0] if one.runs else None, one.whole_runs
    last = runs[0] if runs else None
    ended = next((run for run in runs if run.outcome is not Outcome.RUNNING), None)
    is_missed = _is_missed(job, last, now)
    if one.runs_error is not None:
        reasons.add(Health.WARNING, f"Its runs are not known: {one.runs_error}")
    elif last is None and job.calendar is not None:
        reasons.add(Health.WARNING, "It has never run." if newest is None else "It has never run for all its domains.")
    if newest is not None and newest.started > now + SLACK:
        reasons.add(
            Health.WARNING,
            f"Its last run began at {moment(newest.started)}, later than now by the clock of {facts.host}"
            f" ({moment(now)}), which is, or was, wrong.",
        )
    if ended is not None:
        for health, sentence in _of_run(ended):
            reasons.add(health, sentence)
    if is_missed and job.calendar is not None:
        reasons.add(Health.WARNING, f"Its run of {moment(job.calendar.before(now))} was missed.")
    good = next((run.started for run in runs if run.outcome is Outcome.DONE), None)
    return JobState(
        name=job.name,
        repository=job.repository,
        last_run=last,
        last_good=good,
        next_run=job.calendar.after(now) if job.calendar is not None else None,
        is_running=newest is not None and newest.outcome is Outcome.RUNNING,
        is_missed=is_missed,
        health=reasons.health,
        reasons=tuple(reasons.sentences),
    )


def _is_missed(job: Job, last: Run | None, now: datetime) -> bool:
    """Return True if the last time of the calendar has passed, and no run has begun since."""
    if job.calendar is None or last is None:
        return False
    time = job.calendar.before(now - GRACE - timedelta(seconds=job.random_delay_s))
    return max(last.started, last.scheduled or last.started) < time


def _of_run(run: Run) -> Iterator[tuple[Health, str]]:
    """Yield what is wrong about a run that has ended."""
    when = f"Its run of {moment(run.started)}"
    if run.outcome is Outcome.INTERRUPTED:
        yield Health.WARNING, f"{when} was interrupted."
    if run.outcome in (Outcome.FAILED, Outcome.SOME_FAILED):
        health = Health.CRITICAL if run.outcome is Outcome.FAILED else Health.WARNING
        faults = list(dict.fromkeys(_told(fault) for step in run.steps for fault in step.faults))
        extent = "failed" if run.outcome is Outcome.FAILED else "failed in part"
        yield health, f"{when} {extent}{': ' if faults else '.'}{' '.join(faults[:_FAULTS])}{_more(faults)}"
    for sentence in run.unusual:
        yield Health.WARNING, sentence.replace(due.MAKES_UP, f"the one of {moment(run.started)} made up for it")
    for sentence in run.notices:
        yield Health.WARNING, sentence


def _told(fault: Fault) -> str:
    is_named = fault.domain is None or fault.domain in fault.message
    return fault.message if is_named else f"{fault.domain}: {fault.message}"


def _more(faults: Sequence[str]) -> str:
    return f" And {len(faults) - _FAULTS} more." if len(faults) > _FAULTS else ""


def doubt(facts: Facts) -> str | None:
    """Return a sentence on the clock if nothing has run for so long that it is the likelier reason; else None."""
    newest = max(
        ((one.runs[0].started, one.job.calendar) for one in facts.jobs if one.runs and one.job.calendar is not None),
        key=lambda found: found[0],
        default=None,
    )
    if newest is None:
        return None
    started, calendar = newest
    gap = facts.time - started
    # What vbackup.runs.due says of a run after such a gap, before one is made.
    if gap < max(due.GAP, timedelta(seconds=due.GAP_INTERVALS * calendar.longest_interval_s)):
        return None
    boot = ""
    if facts.booted is not None and facts.booted > started:
        boot = f", and that it was started at {moment(facts.booted)}"
    return (
        f"The clock of {facts.host} says {moment(facts.time)}{boot}: the newest run of all jobs was"
        f" {span(gap.total_seconds())} before. If nothing was off for so long, the clock is wrong; set it right before"
        " anything is pruned."
    )
