"""Follow backup jobs in QEMU to their common end: all of them, or none.

QEMU refuses completion-mode grouped beside bitmap actions, so the jobs neither finalise nor dismiss
themselves: when all are pending all are finalised, and the first failure cancels the others. Events
wake the loop; the verdict is always QEMU's answer to query-jobs, because events get lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

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
from vbackup.report import Reporter
from vbackup.stop import Stop

log = logging.getLogger(__name__)

#: How often progress is asked for, and the longest a request to stop waits to be seen.
TICK_S = 0.25
#: Without one byte of progress for this long the storage is taken for hung.
STALL_S = 600.0
#: How long cancelled jobs may take to end: the requests that are in flight have to come back.
CANCEL_S = 30.0
#: How long the event that tells what a job failed at may be behind the answer that it has failed.
BLAME_S = 0.5
#: How often in a row a connection may be lost before it is given up.
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


#: In which a job copies, or will, and takes another speed (JobVerbTable in QEMU's job.c).
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
    """Sets how fast the jobs of one backup copy while they run. Called by the thread that follows them."""

    def first_bytes_s(self, jobs: int) -> int:
        """With how much each of so many jobs begins."""

    def slowest_bytes_s(self, jobs: int) -> int:
        """The least that each of so many jobs gets for longer than a moment."""

    def adjust(self, monitor: Monitor, jobs: Collection[Job]) -> None:
        """Told how the jobs are at every look at them."""


def stall_limit_s(speed_bytes_s: int | None) -> float:
    """How long jobs may make no progress."""
    return max(STALL_S, _pause_s(speed_bytes_s)) if speed_bytes_s else STALL_S


def _pause_s(speed_bytes_s: int) -> float:
    """How long there may be no progress for the speed's sake: a job copies some MiB, and waits for its rate then."""
    largest_piece_bytes = 16 * 1024 * 1024
    return 2 * largest_piece_bytes / speed_bytes_s


def set_speed(monitor: Monitor, job_id: str, speed_bytes_s: int | None) -> bool:
    """Have a job copy no faster than this from now on; None is no limit. False where it has ended, or is not there.

    What the guest's own writes make the job copy is not limited. Raises QmpError where QEMU refuses the rate.
    """
    try:
        monitor.execute("block-job-set-speed", {"device": job_id, "speed": speed_bytes_s or 0})
    except QmpError:
        known = query(monitor)
        if job_id in known and known[job_id].status in CHANGEABLE:
            raise
        return False
    return True


def speeds(monitor: Monitor) -> dict[str, int | None]:
    """How fast each job may copy, in bytes/s, by id; None is no limit. Only block jobs that have not ended."""
    found = {}
    for entry in objects(monitor.execute("query-block-jobs"), "query-block-jobs", MalformedError):
        found[entry.text("device")] = entry.integer("speed") or None
    return found


def query(monitor: Monitor) -> dict[str, Job]:
    """All jobs of that QEMU by id, ours and others'."""
    jobs = {}
    for entry in objects(monitor.execute("query-jobs"), "query-jobs", MalformedError):
        try:
            status = JobStatus(entry.text("status"))
        except ValueError as err:
            raise MalformedError(f"query-jobs has a status that QAPI does not know ({err}).") from err
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
    """Wait until all jobs are pending, finalise them, and return the bytes each has copied, by dev.

    ``devs`` has the disk of each job id; ``on_tick`` is shown the jobs whenever they were asked for, and what it raises
    ends the wait. Raises for the first job that fails NoSpaceError, StorageError where it could not write, else
    JobError; and JobStalledError, InterruptedBySignalError, DomainGoneError. The jobs are then still there: undo with
    ``cancel``. A connection that breaks is opened anew and the wait goes on.
    """
    blame = _Blame(monitor)

    def step(jobs: dict[str, Job]) -> bool:
        for job_id, dev in devs.items():
            if job_id not in jobs:
                raise JobError(dev, "somebody dismissed the job before it was finalised")
        _raise_failure(jobs, devs, blame)
        if on_tick is not None:
            on_tick(jobs)
        return _end_together(monitor, jobs)

    jobs = _watch(monitor, devs, step, reporter=reporter, stop=stop, stall_s=stall_s, note=blame.note)
    return {devs[job.id]: job.done_bytes for job in jobs.values()}


def follow(
    monitor: Monitor,
    job_ids: Collection[str],
    *,
    together: bool,
    reporter: Reporter,
    stop: Stop,
    stall_s: float = STALL_S,
) -> dict[str, Job]:
    """Wait for jobs that others have made up, and return how each ended; they are not dismissed.

    With ``together`` they end like those of a backup: finalised when all are pending, and when one fails the
    others are cancelled. Else each goes its own way, and one that waits for its job-finalize has ended too:
    it was told to wait. A job that is not there any more has the status null. Raises what ``run`` raises,
    but no job's failure, which is in its ``error``.
    """

    def step(jobs: dict[str, Job]) -> bool:
        if not together:
            return all(job.status in (JobStatus.CONCLUDED, JobStatus.PENDING) for job in jobs.values())
        if len(jobs) < len(job_ids) or any(job.error is not None for job in jobs.values()):
            for job in jobs.values():
                if job.error is None:
                    _unless_too_late(monitor, "job-cancel", job.id)
            return all(job.status is JobStatus.CONCLUDED for job in jobs.values())
        return _end_together(monitor, jobs)

    labels = {job_id: job_id for job_id in job_ids}
    jobs = _watch(monitor, labels, step, reporter=reporter, stop=stop, stall_s=stall_s)
    return {job_id: jobs.get(job_id) or _gone(job_id) for job_id in job_ids}


def _watch(
    monitor: Monitor,
    labels: Mapping[str, str],
    step: Callable[[dict[str, Job]], bool],
    *,
    reporter: Reporter,
    stop: Stop,
    stall_s: float,
    note: Callable[[Event], None] | None = None,
) -> dict[str, Job]:
    """Ask for the jobs of these ids and hand those that are there to ``step``, until it says that they have ended.

    ``note`` gets the events that come meanwhile.
    """
    progress_at, seen = time.monotonic(), dict[str, Job]()
    losses = 0
    while True:
        stop.check()
        try:
            known = query(monitor)
            jobs = {job_id: known[job_id] for job_id in labels if job_id in known}
            for job in jobs.values():
                reporter.progress(labels[job.id], job.done_bytes, job.total_bytes)
            if step(jobs):
                return jobs
            losses = 0
        except ConnectionLostError as err:
            losses = _count_loss(losses, err)
            jobs = seen
        if jobs != seen:
            progress_at, seen = time.monotonic(), jobs
        elif time.monotonic() - progress_at > stall_s:
            stall_s = _raise_if_stalled(monitor, labels, stall_s)
        _wait_for_change(monitor, note)


def _raise_if_stalled(monitor: Monitor, job_ids: Collection[str], limit_s: float) -> float:
    """Raise JobStalledError, unless the jobs have been slowed down meanwhile; returns how long that lets them take."""
    pauses = [_pause_s(speed) for job_id, speed in speeds(monitor).items() if job_id in job_ids and speed]
    allowed_s = max(pauses, default=0.0)
    if allowed_s <= limit_s:
        raise JobStalledError(limit_s)
    return allowed_s


def cancel(monitor: Monitor, job_ids: Collection[str], *, timeout_s: float = CANCEL_S) -> None:
    """End the jobs, whatever state they are in, and dismiss them. Jobs that are not there are fine.

    Raises JobStalledError if one does not end in time; it is left to end by itself.
    """
    deadline = time.monotonic() + timeout_s
    losses = 0
    while True:
        try:
            jobs = [job for job_id, job in query(monitor).items() if job_id in job_ids]
            if not jobs:
                return
            for job in jobs:
                verb = "job-dismiss" if job.status is JobStatus.CONCLUDED else "job-cancel"
                _unless_too_late(monitor, verb, job.id)
            losses = 0
        except ConnectionLostError as err:
            losses = _count_loss(losses, err)
            jobs = []
        if time.monotonic() > deadline:
            raise JobStalledError(timeout_s)
        if not all(job.status is JobStatus.CONCLUDED for job in jobs):
            _wait_for_change(monitor)


def _count_loss(losses: int, err: ConnectionLostError) -> int:
    """QEMU and its jobs do not mind a lost connection, and the next question opens a new one if it can.

    Raises ``err`` where that has been of no use several times in a row.
    """
    if losses == MAX_LOSSES:
        raise err
    log.warning("%s", err)
    return losses + 1


def _gone(job_id: str) -> Job:
    error = QemuText("somebody dismissed it before it was seen to end")
    return Job(job_id, type="", status=JobStatus.NULL, done_bytes=0, total_bytes=0, error=error)


class _Blame:
    """Whether a job failed at a read or a write: query-jobs has only the words of its errno, BLOCK_JOB_ERROR tells."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._operations: dict[object, object] = {}  #: the first that failed, by job id

    def note(self, event: Event) -> None:
        """Remember it if it tells of a failure."""
        if event.name == "BLOCK_JOB_ERROR":
            self._operations.setdefault(event.data.get("device"), event.data.get("operation"))

    def operation(self, job_id: str) -> object:
        """QAPI IoOperationType; None where the event was lost, or there was none."""
        deadline = time.monotonic() + BLAME_S
        while job_id not in self._operations:
            event = self._monitor.next_event(max(0.0, deadline - time.monotonic()))
            if event is None:
                return None
            self.note(event)
        return self._operations[job_id]


def _raise_failure(jobs: Mapping[str, Job], devs: Mapping[str, str], blame: _Blame) -> None:
    for job in jobs.values():
        if job.error is not None:
            if job.error.is_no_space:
                raise NoSpaceError(
                    f"Disk {devs[job.id]}: no space left for its image in the repository. Nothing was kept of this"
                    " backup; make room and run the same command again."
                )
            operation = blame.operation(job.id)
            if operation == "write":
                raise StorageError(
                    f"Disk {devs[job.id]}: QEMU could not write its image to the repository: {job.error}. Nothing was"
                    " kept of this backup; mend the repository's storage and run the same command again."
                )
            raise JobError(devs[job.id], f"{job.error} at a read of the disk" if operation == "read" else job.error)
        if job.status is JobStatus.ABORTING:
            log.debug("job %s is aborting; its error comes when it has concluded", job.id)


def _end_together(monitor: Monitor, jobs: Mapping[str, Job]) -> bool:
    """Finalise the jobs once all are pending; true when all have concluded."""
    if all(job.status in (JobStatus.PENDING, JobStatus.CONCLUDED) for job in jobs.values()):
        for job in jobs.values():
            if job.status is JobStatus.PENDING:
                _unless_too_late(monitor, "job-finalize", job.id)
    return all(job.status is JobStatus.CONCLUDED for job in jobs.values())


def _unless_too_late(monitor: Monitor, command: str, job_id: str) -> None:
    """A job may reach its end between query-jobs and the command; query-jobs then tells how."""
    try:
        monitor.execute(command, {"id": job_id})
    except QmpError as err:
        log.debug("%s", err)


def _wait_for_change(monitor: Monitor, note: Callable[[Event], None] | None = None) -> None:
    """Until a job event comes or it is time to ask again; a burst of events counts as one."""
    event = monitor.next_event(TICK_S)
    while event is not None:
        if note is not None:
            note(event)
        event = monitor.next_event(0)
