"""Decide when a job runs: whether it is due, whether it may begin now, and what is unusual about the time.

No clock is asked: the moment is given. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone, tzinfo

from vbackup.config.calendar import Window
from vbackup.config.model import Job
from vbackup.runs.record import Outcome, Run

#: How far ahead of the clock a run may have begun: clocks are set by some seconds all the time.
AHEAD = timedelta(minutes=5)
#: A run that begins later than this after its time was missed, and is made up for.
LATE = timedelta(hours=1)
#: A gap between two runs that no holiday explains: the clock may have jumped. Both have to be exceeded.
GAP, GAP_INTERVALS = timedelta(days=30), 10
#: How many of the newest runs are looked at: more than are killed or stopped one after the other.
RECENT = 20

#: How a sentence of ``unusual`` ends, which the run says of itself.
MAKES_UP = "this one makes up for it"

_ENDED = frozenset((Outcome.DONE, Outcome.SOME_FAILED, Outcome.FAILED))


@dataclass(frozen=True)
class Due:
    """Whether a job is due."""

    is_due: bool
    scheduled: datetime | None  #: the last time of its calendar; None: it has none
    reason: str  #: why it is due or not, as the end of a sentence that begins with the job


def due(job: Job, runs: Sequence[Run], now: datetime, zone: tzinfo | None = None) -> Due:
    """Return whether the last time of the job's calendar has passed without a run that ended.

    ``runs``: of the job, the newest first; that since then which began last decides. A run that was killed or stopped
    has not ended, and is made up for even if one before it was good: somebody wanted it. One that failed has ended: it
    was told, and is not repeated before the next time. One that seems to have begun in the future says nothing, nor
    does one of other domains, which somebody asked for.
    """
    if job.calendar is None:
        return Due(False, None, "has no calendar (at), so only 'vbackup run JOB' runs it")
    scheduled = job.calendar.before(now, zone)
    for run in runs:
        if run.is_partial and run.outcome is not Outcome.RUNNING:
            continue
        if run.started > now + AHEAD or (run.started < scheduled and run.scheduled != scheduled):
            continue
        if run.outcome is Outcome.RUNNING:
            return Due(False, scheduled, f"is running since {local(run.started)}")
        if run.outcome is Outcome.INTERRUPTED:
            return Due(True, scheduled, f"is due: its run that began at {local(run.started)} was interrupted")
        if run.outcome in _ENDED:
            return Due(False, scheduled, f"was run at {local(run.started)}, after its last time, {local(scheduled)}")
    return Due(True, scheduled, f"is due since {local(scheduled)}")


def next_time(job: Job, now: datetime, zone: tzinfo | None = None) -> datetime | None:
    """Return when the calendar has it run next; None without a calendar."""
    return None if job.calendar is None else job.calendar.after(now, zone)


def opens(window: Window, now: datetime, zone: tzinfo | None = None) -> datetime | None:
    """Return when a window that is closed opens; None if it is open."""
    return None if window.is_open(now, zone) else _next(window.start, now, zone)


def closes(window: Window, now: datetime, zone: tzinfo | None = None) -> datetime:
    """Return when a window that is open closes."""
    return _next(window.end, now, zone)


def _next(at: time, now: datetime, zone: tzinfo | None) -> datetime:
    """Return when the clock on the wall says ``at`` next. A time that comes twice in a night is met both times."""
    today = now.astimezone(zone).date()
    walls = [datetime.combine(today + timedelta(days=number), at) for number in range(3)]
    both = ((wall, wall.replace(fold=1)) if _comes_twice(wall, zone) else (wall,) for wall in walls)
    return min(moment for some in both for one in some if (moment := _moment(one, zone)) > now)


def _comes_twice(wall: datetime, zone: tzinfo | None) -> bool:
    return _moment(wall, zone) < _moment(wall.replace(fold=1), zone)


def _moment(wall: datetime, zone: tzinfo | None) -> datetime:
    return (wall if zone is None else wall.replace(tzinfo=zone)).astimezone(timezone.utc)


@dataclass(frozen=True)
class Doubt:
    """The clock seems to be wrong, or to have been."""

    reason: str  #: a sentence
    trusted: datetime | None  #: when the last run began whose time is not in doubt; None: the clock fits it again


def jump(job: Job, runs: Sequence[Run], now: datetime) -> Doubt | None:
    """Return why the clock cannot be trusted; None if it can.

    While that is so, nothing is removed: rules such as keep-within count from the newest backup, and one with a wrong
    time would make all others old. A clock that stays wrong fits the runs that it was wrong for, so it is compared with
    the last run before those, until it fits that or somebody says that it is right.
    """
    if not runs:
        return None
    last, trusted = runs[0].started, last_trusted(runs)
    interval_s = 0.0 if job.calendar is None else job.calendar.longest_interval_s
    # The same words each night, so that they are told once.
    begun = f"The last run that is not in doubt began at {local(trusted)}"
    if trusted > now + AHEAD:
        return Doubt(f"{begun}, later than now: the clock has been set back, or was wrong then.", trusted)
    if now - trusted > max(GAP, timedelta(seconds=GAP_INTERVALS * interval_s)):
        return Doubt(f"{begun}, long ago: the machine was off for long, or the clock is wrong.", trusted)
    if last > now + AHEAD:
        return Doubt(
            f"The clock says {local(now)}, but the last run began at {local(last)}, which is later: the clock has been"
            " set back, or was wrong then.",
            None,
        )
    return None


def last_trusted(runs: Sequence[Run]) -> datetime:
    """Return when the last run began whose time is not in doubt. There is at least one."""
    return runs[0].trusted or runs[0].started


def unusual(runs: Sequence[Run], scheduled: datetime | None, now: datetime, random_delay_s: float) -> tuple[str, ...]:
    """Return what is unusual about a run that begins now, as sentences: it makes up for another one."""
    sentences = []
    if runs and runs[0].outcome is Outcome.INTERRUPTED:
        sentences.append(f"The run that began at {local(runs[0].started)} did not end; {MAKES_UP}.")
    elif scheduled is not None and runs and now - scheduled > LATE + timedelta(seconds=random_delay_s):
        sentences.append(f"The run of {local(scheduled)} was missed; {MAKES_UP}.")
    return tuple(sentences)


def local(moment: datetime) -> str:
    """Return the time in the time zone of the system, to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
