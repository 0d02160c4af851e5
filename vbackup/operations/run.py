"""Run jobs of the configuration: which ones now, one after the other, each under the lock of its repository."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from vbackup import machine, names
from vbackup.config.model import Config, Job
from vbackup.errors import BusyError, InterruptedBySignalError, Status, StorageError, UsageError, VbackupError
from vbackup.files import reported
from vbackup.operations import run_commands, run_end, run_job, run_results
from vbackup.operations.run_job import JobRun, World
from vbackup.operations.run_log import Log
from vbackup.repository.repository import Repository
from vbackup.runs import due, lock
from vbackup.runs.attempts import Attempts, What
from vbackup.runs.due import Due
from vbackup.runs.record import Fault, Outcome, Run, Step, StepKind

log = logging.getLogger(__name__)

NO_JOB = "The configuration has no job: 'vbackup config init' makes one, vbackup.toml(5) describes it."
#: How long a run waits for another one that works on its repository: the longest night.
WAIT_S = 12 * 3600.0


@dataclass(frozen=True)
class RunRequest:
    """The options of ``vbackup run``."""

    jobs: tuple[str, ...] = ()  #: names; empty: all
    only_due: bool = False  #: leave out those that are not due
    wait_s: float = WAIT_S  #: how long to wait for another run that works on the repository
    changed: tuple[Job, ...] = ()  #: jobs as they are for this run only, in place of those of the configuration
    accepts_clock: bool = False  #: somebody has looked at the clock: it is right, whatever earlier runs say


@dataclass(frozen=True)
class NotRun:
    """A job that was not run, which is as it should be with ``only_due``, and otherwise an error."""

    job: str
    reason: str  #: a sentence
    error: VbackupError | None = None


@dataclass(frozen=True)
class Ran:
    """What became of the jobs."""

    runs: tuple[Run, ...]
    not_run: tuple[NotRun, ...]
    status: int  #: exit status


def run(request: RunRequest, config: Config, world: World) -> Ran:
    """Run the jobs, one after the other; what fails is in the answer.

    Raises UsageError for a job that is not in the configuration, before any is run. After a request to stop, no further
    job is begun, and what that ended has status 128 and the number of the signal.
    """
    changed = {job.name: job for job in request.changed}
    jobs = [changed.get(job.name, job) for job in chosen(request.jobs, config)]
    runs: list[Run] = []
    not_run: list[NotRun] = []
    for job in jobs:
        if world.stop.signum is not None:
            break
        try:
            made = _run(job, request, config, world)
        except Exception as err:  # one job must not keep the others from being run
            log.debug("unexpected", exc_info=err)
            known = reported(err)
            made = NotRun(job.name, str(known), known)
            if not isinstance(known, InterruptedBySignalError):
                made = _told(job, known, request, config, world)
        if isinstance(made, Run):
            runs.append(made)
        else:
            not_run.append(made)
    statuses = [one.status for one in runs] + [int(one.error.status) for one in not_run if one.error is not None]
    status = run_results.joined_status(statuses)
    if world.stop.signum is not None:
        status = int(Status.SIGNAL + world.stop.signum)
    return Ran(tuple(runs), tuple(not_run), int(status))


def tell_fault(fault: VbackupError, jobs: Sequence[str], config: Config, world: World) -> tuple[str, ...]:
    """Tell who wants to know that jobs cannot be run, and return what was not sent; without names, all jobs.

    ``config`` is the configuration as far as it could be read: a fault in a job leaves the notifiers. Raises nothing.
    """
    runs = [_failed(name, config, fault, world.now()) for name in dict.fromkeys(jobs or config.jobs)]
    return tuple(sentence for one in runs for sentence in run_end.told(one, config, world))


def chosen(words: Sequence[str], config: Config) -> list[Job]:
    """Return the jobs of that names, each once; all without a name. Raises UsageError."""
    if not config.jobs:
        raise UsageError(NO_JOB)
    for word in words:
        if word not in config.jobs:
            hint = names.closest(word, config.jobs) or f"; there are: {', '.join(config.jobs)}"
            raise UsageError(f"The configuration has no job {word!r}{hint}.")
    return [config.jobs[word] for word in dict.fromkeys(words or config.jobs)]


def is_due(job: Job, world: World) -> Due:
    """Return whether the job is due now. Raises StorageError."""
    return due.due(job, world.store.list(job.name, due.RECENT), world.now())


def _run(job: Job, request: RunRequest, config: Config, world: World) -> Run | NotRun:
    """Run a job, unless it is not due, its window is closed, or it is running. Raises VbackupError."""
    scheduled = None
    if request.only_due:
        asked = is_due(job, world)
        if not asked.is_due:
            return NotRun(job.name, f"Job {job.name} {asked.reason}.")
        scheduled = asked.scheduled
    closed = _closed(job, world)
    if closed is not None:
        return NotRun(job.name, closed, None if request.only_due else BusyError(closed))
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.of_job(world.store.state, job.name))
        except BusyError as err:
            return NotRun(job.name, str(err), None if request.only_due else err)
        if request.only_due and not is_due(job, world).is_due:
            return NotRun(job.name, f"Job {job.name} was just run.")
        return _run_locked(job, request, config, world, scheduled)


def _closed(job: Job, world: World) -> str | None:
    """Return why no backup may begin now, as a sentence; None if it may."""
    opens = None if job.window is None else due.opens(job.window, world.now())
    if opens is None:
        return None
    return f"The window of job {job.name} is closed: it opens at {due.local(opens)}."


def _run_locked(
    job: Job, request: RunRequest, config: Config, world: World, scheduled: datetime | None
) -> Run | NotRun:
    """Wait for the repository, and do the run: from here on it is on record, and is told, whatever happens."""
    before = world.store.list(job.name, due.RECENT)
    kept = Log(world.reporter, world.now)
    world = replace(world, reporter=kept)
    new = _new(job.name, str(config.repositories[job.repository].path), world.now(), scheduled)
    whole = config.jobs[job.name]
    new = replace(new, is_partial=(job.domains, job.exclude) != (whole.domains, whole.exclude))
    ours = replace(config, jobs={**config.jobs, job.name: job})
    path = config.repositories[job.repository].path
    with ExitStack() as stack:
        try:
            stack.enter_context(
                lock.held(
                    world.store.state,
                    path,
                    job=job.name,
                    wait_s=request.wait_s,
                    reporter=world.reporter,
                    stop=world.stop,
                )
            )
        except BusyError as err:
            # It did nothing, so its time is no proof that the clock is right.
            is_compared = bool(before) and not request.accepts_clock
            refused = replace(new, trusted=due.last_trusted(before) if is_compared else None)
            return run_end.finish(_without_lock(refused, err, world), ours, world, kept)
        closed = _closed(job, world)
        if closed is not None:  # while it waited
            return NotRun(job.name, closed, None if request.only_due else BusyError(closed))
        now = world.now()
        doubt = None if request.accepts_clock else due.jump(job, before, now)
        jump = None if doubt is None else _advised(doubt, job, config)
        unusual = due.unusual(before, scheduled, now, job.random_delay_s)
        new = replace(new, started=now, id=names.stamp(now), unusual=(*unusual, *([jump] if jump else [])))
        new = replace(new, trusted=None if doubt is None else doubt.trusted)
        is_on_record = True
        try:
            begun = world.store.begin(new)
        except StorageError as err:  # backups are worth more than their record; each step tries again, and warns
            log.debug("not on record: %s", err)
            tried = None if scheduled is None else _tried(scheduled, job, world, path)
            if tried is not None:
                return NotRun(job.name, _off_record(job, tried, err))
            begun, is_on_record = new, False
        for sentence in begun.unusual:
            world.reporter.warning(sentence)
        until = None if job.window is None else due.closes(job.window, now)
        with run_end.announced(begun, ours, world) as untold:
            work = JobRun(job, config, world, begun, until=until, jump=jump)
            done = run_job.ended(work.do_steps(), world.now(), world.stop)
        if scheduled is not None and not is_on_record and done.outcome is not Outcome.INTERRUPTED:
            with suppress(VbackupError):
                Attempts(world.store.state, job.name).note(What.RUN, scheduled, now)
        return run_end.finish(replace(done, notices=untold.sentences), ours, world, kept)


def _advised(doubt: due.Doubt, job: Job, config: Config) -> str:
    """Return why the clock is in doubt, and what to do: nobody else decides whether it is right."""
    if doubt.trusted is None:
        return doubt.reason
    is_windowed = config.jobs[job.name].window is not None
    anytime = ("--window", "any") if is_windowed else ()
    command = shlex.join(("vbackup", "run", job.name, "--accept-clock", *anytime, *config.given))
    return f"{doubt.reason} Set it right; if it is right, '{command}' says so."


def _begun(run: Run, world: World) -> Run:
    """Put the run on record as one that is at work, and return it. Raises BusyError."""
    try:
        return world.store.begin(run)
    except StorageError as err:  # backups are worth more than their record; each step tries again, and warns
        log.debug("not on record: %s", err)
        return run


def _told(job: Job, err: VbackupError, request: RunRequest, config: Config, world: World) -> NotRun:
    """Tell that a job cannot begin, and return that; with ``only_due``, tell a cause once for a time of its calendar.

    Where the state directory cannot be used, nobody else remembers that. What could not be sent is tried again.
    """
    from vbackup.notices.memory import NotKept

    scheduled = None if job.calendar is None or not request.only_due else job.calendar.before(world.now())
    attempts, cause = Attempts(world.store.state, job.name), f"{err.code} {err}"
    if scheduled is not None and attempts.time(What.BEGIN, scheduled, cause) is not None:
        return NotRun(job.name, f"Job {job.name} cannot be run, as was told before: {err}", err)
    unsent = run_end.told(_failed(job.name, config, err, world.now()), config, world)
    if scheduled is not None and all(isinstance(one, NotKept) for one in unsent):
        with suppress(VbackupError):
            attempts.note(What.BEGIN, scheduled, world.now(), cause)
    return NotRun(job.name, str(err), err)


def _tried(scheduled: datetime, job: Job, world: World, path: Path) -> str | None:
    """Return what became of the job since its last time, after "Job NAME "; None if it is to be run."""
    made = _backed_up_since(scheduled, job, path, world.now())
    if made is not None:
        return f"was backed up at {due.local(made)}"
    tried = Attempts(world.store.state, job.name).time(What.RUN, scheduled)
    return None if tried is None else f"was run at {due.local(tried)}"


def _backed_up_since(scheduled: datetime, job: Job, path: Path, now: datetime) -> datetime | None:
    """Return when a domain of the job was last backed up, if that was after its last time.

    Where no run can be put on record, the repository tells that there was one: otherwise each call would make another.
    """
    # Another host can have a job for the same repository; of a domain elsewhere, the host in its backup is that one.
    here = machine.this_host() if not job.connect and job.hosts is None else None
    found: list[datetime] = []
    with suppress(VbackupError):  # the backup itself says what is wrong with the repository
        repository = Repository.open(path)
        known = {uuid: repository.name_of(uuid) for uuid in repository.uuids()}
        for uuid in run_commands.belonging(job, known):
            with suppress(VbackupError):
                backups = repository.catalogue(uuid, with_chains=False).history.backups
                found += [one.time for one in backups if not (here and one.host and one.host.is_other_than(here))]
    return max((one for one in found if scheduled <= one <= now + due.AHEAD), default=None)


def _off_record(job: Job, tried: str, err: StorageError) -> str:
    return (
        f"Job {job.name} {tried}, after its last time, so it is not run again before its next one. Its runs cannot be"
        f" put on record: {err}"
    )


def _without_lock(new: Run, err: BusyError, world: World) -> Run:
    """Return the run that did nothing, as the repository was not free. Raises BusyError."""
    world.reporter.warning(str(err))
    return run_job.ended(_begun(replace(new, steps=(_refused(err),)), world), world.now(), world.stop)


def _failed(job: str, config: Config, err: VbackupError, now: datetime) -> Run:
    """Return the run of a job that could not even begin, for those who are told."""
    entry = config.repositories.get(config.jobs[job].repository) if job in config.jobs else None
    new = _new(job, "unknown" if entry is None else str(entry.path), now, None)
    return replace(new, ended=now, outcome=Outcome.FAILED, status=int(err.status), steps=(_refused(err),))


def _refused(err: VbackupError) -> Step:
    fault = Fault(err.code, int(err.status), str(err))
    return Step(StepKind.BACKUP, Outcome.FAILED, None, None, fault.status, faults=(fault,))


def _new(job: str, repository: str, now: datetime, scheduled: datetime | None) -> Run:
    return Run(
        id=names.stamp(now),
        job=job,
        repository=repository,
        host=machine.this_host().name,
        scheduled=scheduled,
        started=now,
        ended=None,
        outcome=Outcome.RUNNING,
        status=0,
    )
