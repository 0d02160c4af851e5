"""Back up domains of several hosts into one repository: some at a time, with a limit for each host.

Each host is a batch (vbackup.operations.batch) with its own connection. Their domains take turns, so that the hosts
share the work from the beginning. Two domains with one UUID are never worked on at once: they share a directory and a
lock in the repository.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from vbackup.domain.fleet import FleetSelection
from vbackup.domain.selection import Chosen
from vbackup.engine.plan import BackupPlan
from vbackup.errors import DomainNotFoundError, VbackupError
from vbackup.model import Backup
from vbackup.operations import batch
from vbackup.operations.batch import Batch, Result, Work

T = TypeVar("T", Backup, BackupPlan)


@dataclass(frozen=True)
class Limits:
    """How many domains are worked on at once."""

    parallel: int = batch.PARALLEL  #: on all hosts together
    per_host: int | None = None  #: on each of them; None: as many as on all together


@dataclass(frozen=True)
class _Task:
    """One domain of one host."""

    host: int
    place: int  #: among the domains of the host
    domain: Chosen
    run: Callable[[], None]


def run(selected: FleetSelection, batches: Sequence[Batch | VbackupError], limits: Limits) -> list[Result[Backup]]:
    """Back up what was selected; return the results by host and domain, as ``selected`` has them.

    ``batches`` has, for each host of ``selected``, its batch, or why there is none now. ``total_bytes_s`` of the first
    batch limits all together.
    """
    made = [one for one in batches if isinstance(one, Batch)]
    count = sum(len(one.selection.chosen) for one in selected.hosts)
    rate = batch.total_rate(made[0].total_bytes_s if made else None, at_once=max(1, min(limits.parallel, count)))
    return _results(selected, batches, limits, lambda of: batch.backing_up(of, rate))


def dry_run(
    selected: FleetSelection, batches: Sequence[Batch | VbackupError], limits: Limits
) -> list[Result[BackupPlan]]:
    """Like ``run``, but only plan the backups and let QEMU check them; nothing is copied, frozen or kept."""
    return _results(selected, batches, limits, batch.planning)


def _results(
    selected: FleetSelection,
    batches: Sequence[Batch | VbackupError],
    limits: Limits,
    work_of: Callable[[Batch], Work[T]],
) -> list[Result[T]]:
    done: dict[tuple[int, int], Result[T]] = {}
    tasks = []
    for number, (part, of) in enumerate(zip(selected.hosts, batches)):
        for place, domain in enumerate(part.selection.chosen):
            if isinstance(of, VbackupError):
                done[number, place] = Result(domain, 0.0, made=None, error=of)
            else:
                tasks.append(_Task(number, place, domain, _doing(done, (number, place), of, domain, work_of(of))))
    _work_off(tasks, limits)
    results: list[Result[T]] = []
    for number, part in enumerate(selected.hosts):
        of_host = [done[number, place] for place in range(len(part.selection.chosen))]
        of_host += [Result(domain, 0.0, made=None, error=error) for domain, error in part.refused]
        results += [replace(result, host=part.name, uri=part.uri) for result in of_host]
    hosts = ", ".join(part.name for part in selected.hosts if part.error is None)
    for word in selected.unknown:
        error = DomainNotFoundError(word, f"at {hosts}", "'virsh -c URI list --all' lists the domains of a host")
        results.append(Result(Chosen(word, None), 0.0, made=None, error=error))
    return results


def _doing(
    done: dict[tuple[int, int], Result[T]], key: tuple[int, int], of: Batch, domain: Chosen, work: Work[T]
) -> Callable[[], None]:
    def do() -> None:
        done[key] = batch.result_of(of, domain, work)

    return do


def _work_off(tasks: Sequence[_Task], limits: Limits) -> None:
    """Run all tasks, the hosts in turn, within the limits."""
    queue = _Queue(sorted(tasks, key=lambda task: (task.place, task.host)), limits.per_host or limits.parallel)

    def work(_thread: int) -> None:
        while (task := queue.take()) is not None:
            try:
                task.run()
            finally:
                queue.done(task)

    threads = min(limits.parallel, len(tasks))
    if threads:
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="domain") as pool:
            list(pool.map(work, range(threads)))


class _Queue:
    """Tasks in their order, of which one waits while its host has enough to do, or its UUID is being worked on."""

    def __init__(self, tasks: Sequence[_Task], per_host: int) -> None:
        self._waiting = list(tasks)
        self._running: list[_Task] = []
        self._per_host = per_host
        self._changed = threading.Condition()

    def take(self) -> _Task | None:
        """Wait for a task that may run, and return it; None if no more are left to begin."""
        with self._changed:
            while self._waiting:
                task = next(filter(self._may_run, self._waiting), None)
                if task is not None:
                    self._waiting.remove(task)
                    self._running.append(task)
                    return task
                self._changed.wait()  # something is running, whose end notifies
            return None

    def done(self, task: _Task) -> None:
        """Make room for others."""
        with self._changed:
            self._running.remove(task)
            self._changed.notify_all()

    def _may_run(self, task: _Task) -> bool:
        on_host = sum(other.host == task.host for other in self._running)
        return on_host < self._per_host and all(other.domain.uuid != task.domain.uuid for other in self._running)
