"""What a run of a job would do, and when: for people who look before they run. Executes and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from vbackup.config.model import Config, Job
from vbackup.errors import VbackupError
from vbackup.operations import run_commands
from vbackup.operations.run_commands import Argv, Planned, StepDomains
from vbackup.operations.run_job import World
from vbackup.repository.repository import Repository
from vbackup.runs import due
from vbackup.runs.due import Due
from vbackup.runs.record import Run, StepKind


@dataclass(frozen=True)
class PlannedStep:
    """A step, as the command lines that it executes."""

    kind: StepKind
    target: str | None
    commands: tuple[Argv, ...]  #: without the program; none if there is nothing to work on yet


@dataclass(frozen=True)
class PlannedRun:
    """A job: when it runs, and what it would do now."""

    job: Job
    due: Due
    next: datetime | None  #: the next time of its calendar
    opens: datetime | None  #: when its window opens; None: it is open, or there is none
    last: Run | None  #: the newest run, which can be at work
    steps: tuple[PlannedStep, ...]
    error: VbackupError | None  #: why its repository cannot be opened
    repository: str = ""  #: its path

    @property
    def reason(self) -> str:
        """Why it is due or not, as a sentence."""
        closed = f"; its window opens at {due.local(self.opens)}" if self.opens is not None else ""
        return f"Job {self.job.name} {self.due.reason}{closed}."


def plan(jobs: Sequence[Job], config: Config, world: World) -> tuple[PlannedRun, ...]:
    """Return each of the jobs with its times and its steps. Raises StorageError if the record cannot be read."""
    return tuple(_plan(job, config, world) for job in jobs)


def _plan(job: Job, config: Config, world: World) -> PlannedRun:
    now, runs = world.now(), world.store.list(job.name, due.RECENT)
    opens = None if job.window is None else due.opens(job.window, now)
    until = due.closes(job.window, now) if job.window is not None and opens is None else None
    error: VbackupError | None = None
    known: dict[str, str] = {}
    try:
        repository = Repository.open(config.repositories[job.repository].path)
        known = {uuid: repository.name_of(uuid) for uuid in repository.uuids()}
    except VbackupError as err:
        error = err
    domains = {uuid: known[uuid] for uuid in run_commands.belonging(job, known)}
    steps = [
        PlannedStep(one.kind, one.target, _commands(one, job, config, _of_step(one, job, config, domains), until))
        for one in run_commands.steps(job, config)
    ]
    last = runs[0] if runs else None
    return PlannedRun(
        job,
        due.due(job, runs, now),
        due.next_time(job, now),
        opens,
        last,
        tuple(steps),
        error,
        repository=os.fspath(config.repositories[job.repository].path),
    )


def _of_step(planned: Planned, job: Job, config: Config, known: Mapping[str, str]) -> StepDomains:
    """Return the domains that a step works on."""
    contested = run_commands.contested(job, config, known) if planned.kind is StepKind.PRUNE else {}
    return StepDomains([uuid for uuid in known if uuid not in contested], run_commands.has_all(job) and not contested)


def _commands(
    planned: Planned, job: Job, config: Config, of_step: StepDomains, until: datetime | None
) -> tuple[Argv, ...]:
    domains, are_all = of_step
    kind, target = planned.kind, planned.target or ""
    if kind is StepKind.BACKUP:
        return (run_commands.backup(job, config, until=until),)
    if not domains:
        return ()
    if kind is StepKind.AUDIT:
        return tuple(run_commands.audit(job, config, domain, None) for domain in domains)
    words = None if are_all else domains
    makers = {
        StepKind.COPY: lambda: run_commands.copy(job, config, target, words),
        StepKind.COPY_PRUNE: lambda: run_commands.copy_prune(job, config, target, domains),
        StepKind.COPY_VERIFY: lambda: run_commands.copy_verify(job, config, target, domains),
        StepKind.PRUNE: lambda: run_commands.prune(job, config, words),
        StepKind.VERIFY: lambda: run_commands.verify(job, config, words),
    }
    return (makers[kind](),)
