"""Follow the backup jobs in QEMU until all have succeeded, or one has failed.

QEMU refuses completion-mode grouped in a transaction with bitmap actions, so the jobs neither finalise nor dismiss
themselves: vbackup finalises all jobs when all are pending, and cancels the others if one fails. Events only wake the
loop; the outcome is always taken from query-jobs, because events can be lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from vbackup.errors import (
    ConnectionLostError,
    JobError,
    JobStalledError,
    MalformedError,
    NoSpaceError,
    QemuText,
    QmpError,
    StorageError,
)
from vbackup.fields import objects
from vbackup.qemu.monitor import Event, Monitor
from vbackup.report import Phase, Reporter, Silent
from vbackup.stop import Stop

log = logging.getLogger(__name__)

#: Interval between two queries for progress, and the longest delay until a request to stop is noticed.
TICK_S = 0.25
#: The storage is considered hung after this time without a byte of progress.
STALL_S = 600.0
#: How long cancelled jobs may take to end: their requests in flight have to complete.
CANCEL_S = 30.0
#: How much later than the answer that a job has failed the event may come that says at which operation.
BLAME_S = 0.5
#: How many times in a row the connection may be lost before vbackup gives up.
MAX_LOSSES = 3


class JobStatus(Enum):
    """QAPI JobStatus."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"


T = TypeVar("T")

#: The states in which a job copies, or will copy, and accepts a new speed (JobVerbTable in QEMU's job.c).
CHANGEABLE = frozenset((JobStatus.CREATED, JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.READY, JobStatus.STANDBY))


@dataclass(frozen=True)
class Job:
    """One entry of query-jobs (QAPI JobInfo)."""

    id: str
    type: str
    status: JobStatus
    done_bytes: int
    total_bytes: int
    error: QemuText | None


class Throttle(Protocol):
    """Sets the speed of the jobs of one backup while they run. Called by the thread that follows the jobs."""

    def first_bytes_s(self, jobs: int) -> int:
        """Return the speed in bytes/s at which each of ``jobs`` jobs starts."""

    def slowest_bytes_s(self, jobs: int) -> int:
        """Return the lowest speed in bytes/s that each of ``jobs`` jobs gets for longer than a moment."""

    def adjust(self, monitor: Monitor, jobs: Collection[Job]) -> None:
        """Set the speed of the jobs where it has to change. Called with the state of the jobs after every query."""


def stall_limit_s(speed_bytes_s: int | None) -> float:
    """Return how many seconds jobs at this speed may make no progress."""
    return max(STALL_S, _pause_s(speed_bytes_s)) if speed_bytes_s else STALL_S


def _pause_s(speed_bytes_s: int) -> float:
    """Return how many seconds the speed limit may keep a job from progress: it copies some MiB, then it waits."""
    largest_piece_bytes = 16 * 1024 * 1024
    return 2 * largest_piece_bytes / speed_bytes_s


def set_speed(monitor: Monitor, job_id: str, speed_bytes_s: int | None) -> bool:
    """Limit the speed of a job; None removes the limit. Return False if the job has ended or does not exist.

    QEMU does not limit what the job copies because the guest is about to overwrite it. Raises QmpError if QEMU refuses
    the speed.
    """
    try:
        monitor.execute("block-job-set-speed", {"device": job_id, "speed": speed_bytes_s or 0})
    except QmpError:
        job = query(monitor).get(job_id)
        if job is not None and job.status in CHANGEABLE:
            raise
        return False
    return True


def speeds(monitor: Monitor) -> dict[str, int | None]:
    """Return the speed limit of each block job that has not ended, in bytes/s by job id; None is no limit."""
    limits = {}
    for entry in objects(monitor.execute("query-block-jobs"), "query-block-jobs", MalformedError):
        limits[entry.text("device")] = entry.integer("speed") or None
    return limits


def query(monitor: Monitor) -> dict[str, Job]:
    """Return all jobs in QEMU by id, vbackup's and others."""
    jobs = {}
    for entry in objects(monitor.execute("query-jobs"), "query-jobs", MalformedError):
        try:
            status = JobStatus(entry.text("status"))
        except ValueError as err:
            raise MalformedError(f"query-jobs returned an unknown job status ({err}).") from err
        error = entry.optional_text("error")
        job = Job(
            id=entry.text("id"),
            type=entry.text("type"),
            status=status,
            done_bytes=entry.integer("current-progress"),
            total_bytes=entry.integer("total-progress"),
            error=QemuText(error) if error is not None else None,
        )
        jobs[job.id] = job
    return jobs


def run(
    monitor: Monitor,
    devs: Mapping[str, str],
    *,
    reporter: Reporter,
    stop: Stop,
    stall_s: float = STALL_S,
    on_tick: Callable[[Mapping[str, Job]], None] | None = None,
) -> dict[str, int]:
    """Wait until all jobs are pending, finalise them, and return the number of bytes that each has copied, by dev.

    ``devs`` has the disk of each job id. ``on_tick`` gets the jobs after every query; an error that it raises ends the
    wait. For the first job that fails, raises NoSpaceError, StorageError if it could not write, or else JobError. Also
    raises JobStalledError, InterruptedBySignalError and DomainGoneError. After an error the jobs still exist: undo with
    ``cancel``. If the connection is lost, it is reopened and the wait continues.
    """
    blame = _Blame(monitor)

    def step(jobs: dict[str, Job]) -> bool:
        for job_id, dev in devs.items():
            if job_id not in jobs:
                raise JobError(dev, "another QMP client dismissed the job before it was finalised")
        _raise_failure(jobs, devs, blame=blame)
        if on_tick is not None:
            on_tick(jobs)
        return _end_together(monitor, jobs)

    jobs = _watch(monitor, devs, step=step, reporter=reporter, stop=stop, stall_s=stall_s, note=blame.note)
    return {devs[job.id]: job.done_bytes for job in jobs.values()}


def follow(
    monitor: Monitor,
    job_ids: Collection[str],
    *,
    together: bool,
    reporter: Reporter,
    stop: Stop,
    devs: Mapping[str, str] | None = None,
    stall_s: float = STALL_S,
) -> dict[str, Job]:
    """Wait for jobs of any kind, and return each as it ended; they are not dismissed.

    ``devs`` has the disk of a job id, for the progress; that of a job without one is called by its id.

    With ``together`` they end like those of a backup: all are finalised when all are pending, and if one fails the
    others are cancelled. Otherwise each job ends independently, and one that is pending counts as ended: whoever
    started it wants to finalise it. A job that no longer exists has the status null. Raises what ``run`` raises, except
    for the failure of a job, which is in its ``error``.
    """

    def step(jobs: dict[str, Job]) -> bool:
        if not together:
            return all(job.status in (JobStatus.CONCLUDED, JobStatus.PENDING) for job in jobs.values())
        if len(jobs) < len(job_ids) or any(job.error is not None for job in jobs.values()):
            for job in jobs.values():
                if job.error is None:
                    _unless_too_late(monitor, "job-cancel", job_id=job.id)
            return all(job.status is JobStatus.CONCLUDED for job in jobs.values())
        return _end_together(monitor, jobs)

    labels = {job_id: (devs or {}).get(job_id, job_id) for job_id in job_ids}
    jobs = _watch(monitor, labels, step=step, reporter=reporter, stop=stop, stall_s=stall_s)
    return {job_id: jobs.get(job_id) or _gone(job_id) for job_id in job_ids}


def until(monitor: Monitor, job_id: str, condition: Callable[[Job], bool], *, stop: Stop) -> None:
    """Wait until the condition holds for the job, or until it has ended. It is asked at least every TICK_S seconds.

    Raises what ``run`` raises, except for the failure of the job.
    """

    def step(jobs: dict[str, Job]) -> bool:
        job = jobs.get(job_id)
        return job is None or job.status is JobStatus.CONCLUDED or condition(job)

    _watch(monitor, {job_id: job_id}, step=step, reporter=Silent(), stop=stop, stall_s=STALL_S)


def _watch(
    monitor: Monitor,
    labels: Mapping[str, str],
    *,
    step: Callable[[dict[str, Job]], bool],
    reporter: Reporter,
    stop: Stop,
    stall_s: float,
    note: Callable[[Event], None] | None = None,
) -> dict[str, Job]:
    """Query the jobs with these ids and pass those that exist to ``step``, until it returns True; return them.

    ``labels`` has the name of each job for the progress, by id. ``note`` gets the events that arrive.
    """
    progress_at, last_jobs = time.monotonic(), dict[str, Job]()
    losses = 0
    while True:
        stop.check()
        try:
            known = query(monitor)
            jobs = {job_id: known[job_id] for job_id in labels if job_id in known}
            for job in jobs.values():
                reporter.progress(labels[job.id], Phase.COPY, job.done_bytes, job.total_bytes)
            if step(jobs):
                return jobs
            losses = 0
        except ConnectionLostError as err:
            losses = _count_loss(losses, err)
            jobs = last_jobs
        if jobs != last_jobs:
            progress_at, last_jobs = time.monotonic(), jobs
        elif time.monotonic() - progress_at > stall_s:
            stall_s = _raise_if_stalled(monitor, labels, limit_s=stall_s)
        _wait_for_change(monitor, note)


def _raise_if_stalled(monitor: Monitor, job_ids: Collection[str], *, limit_s: float) -> float:
    """Raise JobStalledError, unless a new speed limit explains the pause; return the limit in seconds that follows."""
    pauses = [_pause_s(speed) for job_id, speed in speeds(monitor).items() if job_id in job_ids and speed]
    allowed_s = max(pauses, default=0.0)
    if allowed_s <= limit_s:
        raise JobStalledError(limit_s)
    return allowed_s


def cancel(monitor: Monitor, job_ids: Collection[str], *, timeout_s: float = CANCEL_S) -> None:
    """Cancel the jobs, whatever their state, and dismiss them. Jobs that do not exist are ignored.

    Raises JobStalledError if a job does not end in time; it is left to end by itself.
    """
    deadline = time.monotonic() + timeout_s
    losses = 0
    while True:
        try:
            jobs = [job for job_id, job in query(monitor).items() if job_id in job_ids]
            if not jobs:
                return
            gone = 0
            for job in jobs:
                verb = "job-dismiss" if job.status is JobStatus.CONCLUDED else "job-cancel"
                if _unless_too_late(monitor, verb, job_id=job.id) and job.status is JobStatus.CONCLUDED:
                    gone += 1
            if gone == len(jobs):
                return
            losses = 0
        except ConnectionLostError as err:
            losses = _count_loss(losses, err)
            jobs = []
        if time.monotonic() > deadline:
            raise JobStalledError(timeout_s)
        if not all(job.status is JobStatus.CONCLUDED for job in jobs):
            _wait_for_change(monitor)


def over_losses(monitor: Monitor, call: Callable[[], T], *, stop: Stop) -> T:
    """Return what ``call`` returns, which is repeated if the connection is lost: jobs are running, and survive that.

    Raises ConnectionLostError if the connection was lost too many times in a row, and what ``call`` raises.
    """
    losses = 0
    while True:
        stop.check()
        try:
            return call()
        except ConnectionLostError as err:
            losses = _count_loss(losses, err)
            _wait_for_change(monitor)


def _count_loss(losses: int, err: ConnectionLostError) -> int:
    """Return the new number of losses in a row. Jobs survive a lost connection, and the next query opens a new one.

    Raises ``err`` if the connection was lost too many times in a row.
    """
    if losses == MAX_LOSSES:
        raise err
    log.warning("%s", err)
    return losses + 1


def _gone(job_id: str) -> Job:
    error = QemuText("another QMP client dismissed the job before vbackup saw it end")
    return Job(job_id, type="", status=JobStatus.NULL, done_bytes=0, total_bytes=0, error=error)


class _Blame:
    """Knows at which operation jobs failed: BLOCK_JOB_ERROR says it, query-jobs only has the errno's text."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._operations: dict[object, object] = {}  #: the first failed operation, by job id

    def note(self, event: Event) -> None:
        """Remember the failed operation if the event reports one."""
        if event.name == "BLOCK_JOB_ERROR":
            self._operations.setdefault(event.data.get("device"), event.data.get("operation"))

    def operation(self, job_id: str) -> object:
        """Return the failed operation (QAPI IoOperationType); None if no event says, or it was lost."""
        deadline = time.monotonic() + BLAME_S
        while job_id not in self._operations:
            event = self._monitor.next_event(max(0.0, deadline - time.monotonic()))
            if event is None:
                return None
            self.note(event)
        return self._operations[job_id]


def _raise_failure(jobs: Mapping[str, Job], devs: Mapping[str, str], *, blame: _Blame) -> None:
    for job in jobs.values():
        if job.error is not None:
            if job.error.is_no_space:
                raise NoSpaceError(
                    f"Disk {devs[job.id]}: no space left for its image in the repository. Nothing was kept of this"
                    " backup; free some space and run the same command again."
                )
            operation = blame.operation(job.id)
            if operation == "write":
                raise StorageError(
                    f"Disk {devs[job.id]}: QEMU could not write its image to the repository: {job.error}. Nothing was"
                    " kept of this backup; fix the repository's storage and run the same command again."
                )
            raise JobError(devs[job.id], f"{job.error} while reading the disk" if operation == "read" else job.error)
        if job.status is JobStatus.ABORTING:
            log.debug("job %s is aborting; query-jobs has its error once it has concluded", job.id)


def _end_together(monitor: Monitor, jobs: Mapping[str, Job]) -> bool:
    """Finalise the jobs if all are pending; return True if all have concluded."""
    if all(job.status in (JobStatus.PENDING, JobStatus.CONCLUDED) for job in jobs.values()):
        for job in jobs.values():
            if job.status is JobStatus.PENDING:
                _unless_too_late(monitor, "job-finalize", job_id=job.id)
    return all(job.status is JobStatus.CONCLUDED for job in jobs.values())


def _unless_too_late(monitor: Monitor, command: str, *, job_id: str) -> bool:
    """Execute the command, and return False for an error: the job may end first, and the next query-jobs shows how."""
    try:
        monitor.execute(command, {"id": job_id})
    except QmpError as err:
        log.debug("%s", err)
        return False
    return True


def _wait_for_change(monitor: Monitor, note: Callable[[Event], None] | None = None) -> None:
    """Wait until a job event comes or the next query is due; a burst of events counts as one."""
    event = monitor.next_event(TICK_S)
    while event is not None:
        if note is not None:
            note(event)
        event = monitor.next_event(0)
