"""Run one job: its steps in their order, whatever becomes of each, and the record of it.

A step that fails does not keep the others from being done, but for what would only say the same again: nothing is done
in a repository that cannot be opened, nor at a target that could not be copied to. vbackup.operations.run decides which
jobs are run, vbackup.operations.run_end does what comes after the steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import ClassVar

from vbackup import machine, names
from vbackup.config import keeping
from vbackup.config.model import Config, Job
from vbackup.errors import Status, StorageError, VbackupError
from vbackup.files import reported
from vbackup.operations import run_children, run_commands, run_results
from vbackup.operations.run_children import Ended
from vbackup.operations.run_commands import Argv, Planned, StepDomains
from vbackup.operations.run_results import Backed
from vbackup.report import Labelling
from vbackup.repository.repository import Repository
from vbackup.runs import due
from vbackup.runs.record import Fault, Outcome, Run, Step, StepKind
from vbackup.runs.store import Store
from vbackup.stop import Stop

log = logging.getLogger(__name__)

Execute = Callable[[Argv, Labelling, Stop], Ended]

#: The steps that remove backups.
_REMOVING = frozenset((StepKind.PRUNE, StepKind.COPY_PRUNE))
_FAILED = frozenset((Outcome.FAILED, Outcome.SOME_FAILED))
#: Steps that say what became of the others.
_TOLD = frozenset((StepKind.METRICS, StepKind.REPORT))


def utc_now() -> datetime:
    """Return the time of the system's clock."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class World:
    """What a run has around it."""

    store: Store
    reporter: Labelling
    stop: Stop
    now: Callable[[], datetime] = utc_now
    execute: Execute = run_children.execute


class _NotDoneError(Exception):
    """A step is not begun, for this reason."""


@dataclass
class JobRun:
    """A run of a job that is at work."""

    job: Job
    config: Config
    world: World
    run: Run
    until: datetime | None = None  #: when the window closes
    jump: str | None = None  #: why the clock cannot be trusted
    _lost: Fault | None = None  #: why the repository cannot be opened
    _backed: Sequence[Backed] = ()
    _copied: dict[str, list[str]] = field(default_factory=dict)  #: UUIDs of the domains that were copied, by target
    _warned: set[str] = field(default_factory=set)

    def do_steps(self) -> Run:
        """Do all steps, and return the run with them; it is not ended. Raises nothing."""
        self._keep_config()
        for planned in run_commands.steps(self.job, self.config):
            self._begin(planned)
            step = self._step(planned)
            self._note(replace(self.run, steps=(*self.run.steps[:-1], step)))
        return self.run

    def _keep_config(self) -> None:
        """Keep the configuration in the repository, for the day on which this machine is lost."""
        try:
            keeping.keep(self._repository().path, self.config, host=machine.this_host(), now=self.world.now())
        except VbackupError as err:
            # That the repository cannot be opened, or has no room, the backup says.
            log.debug("configuration not kept: %s", err)

    def _begin(self, planned: Planned) -> None:
        begun = Step(planned.kind, Outcome.RUNNING, self.world.now(), None, None, target=planned.target)
        self._note(replace(self.run, steps=(*self.run.steps, begun)))

    def _note(self, run: Run) -> None:
        self.run = run
        try:
            self.world.store.update(run)
        except StorageError as err:  # backups are worth more than their record
            self._warn(f"the record of the run could not be written: {str(err).rstrip('.')}")

    def _step(self, planned: Planned) -> Step:
        started, begun_s = self.world.now(), time.monotonic()
        try:
            self._refuse(planned)
            self.world.reporter.step(f"Job {self.job.name}: {title(planned.kind, planned.target)}.")
            ended = self._DO[planned.kind](self, planned)
            return self._judged(planned, ended, started=started, duration_s=_since(begun_s))
        except _NotDoneError as reason:
            return Step(planned.kind, Outcome.SKIPPED, None, None, None, target=planned.target, reason=str(reason))
        except Exception as err:  # whatever it is, it belongs to this step, and the run goes on
            log.debug("unexpected", exc_info=err)
            known = reported(err)
            fault = Fault(known.code, int(known.status), str(known))
            self.world.reporter.warning(str(known))
            return replace(self._failed(planned, fault), started=started, duration_s=_since(begun_s))

    def _judged(self, planned: Planned, ended: Sequence[Ended], *, started: datetime, duration_s: float) -> Step:
        """Return the step, and keep what others need to know of it."""
        stopped = self.world.stop.signum is not None
        step = run_results.step(planned, ended, started=started, duration_s=duration_s, stopped=stopped)
        if planned.kind is StepKind.BACKUP:
            step = self._after_backup(step)
        elif planned.kind is StepKind.COPY:
            document = step.document or {}
            self._copied[planned.target or ""] = [one["domain"]["uuid"] for one in document.get("domains", ())]
        return step

    def _failed(self, planned: Planned, fault: Fault) -> Step:
        return Step(planned.kind, Outcome.FAILED, None, None, fault.status, target=planned.target, faults=(fault,))

    def _refuse(self, planned: Planned) -> None:
        """Raise _NotDoneError if the step is not to be begun; VbackupError if the repository has just been lost."""
        if self.world.stop.signum is not None:
            raise _NotDoneError("the run was stopped")
        if self._is_misconfigured():
            raise _NotDoneError("the backup step was refused")
        if self._lost is not None:
            raise _NotDoneError(f"the repository {self.run.repository} cannot be opened")
        if planned.kind in _REMOVING and self.jump is not None:
            raise _NotDoneError(f"{self.jump} Nothing is removed while the time is in doubt.")
        try:
            self._repository()
        except VbackupError as err:
            self._lost = Fault(err.code, int(err.status), str(err))
            raise

    def _is_misconfigured(self) -> bool:
        return any(
            step.kind is StepKind.BACKUP and step.status == Status.USAGE and step.faults for step in self.run.steps
        )

    def _repository(self) -> Repository:
        return Repository.open(self.config.repositories[self.job.repository].path)

    # the steps

    def _execute(self, argv: Argv) -> Ended:
        return self.world.execute(argv, self.world.reporter, self.world.stop)

    def _backup(self, _planned: Planned) -> list[Ended]:
        ended = self._execute(run_commands.backup(self.job, self.config, until=self.until))
        words = self.job.domains
        is_one = len(words) == 1 and not names.is_pattern(words[0])
        return [replace(ended, domain=words[0]) if is_one else ended]

    def _after_backup(self, step: Step) -> Step:
        if step.status == Status.USAGE:
            place = f"{self.job.place}: " if self.job.place.line else ""
            step = replace(step, faults=tuple(replace(one, message=f"{place}{one.message}") for one in step.faults))
        self._backed = run_results.domains(step, self.job.domains)
        self.run = replace(self.run, domains=tuple(one.result for one in self._backed))
        self._note_future()
        return step

    def _prune(self, _planned: Planned) -> list[Ended]:
        present = self._present()
        repository = self._repository()
        known = {uuid: repository.name_of(uuid) for uuid in present.uuids}
        contested = run_commands.contested(self.job, self.config, known)
        sentences = [run_commands.contradiction(known[uuid], self.job.name, other) for uuid, other in contested.items()]
        free = [uuid for uuid in present.uuids if uuid not in contested]
        if not free:
            raise _NotDoneError(sentences[0])
        for sentence in sentences:
            self.world.reporter.warning(sentence)
        words = _words(StepDomains(free, present.are_all and not contested))
        ended = self._execute(run_commands.prune(self.job, self.config, words))
        return [replace(ended, warnings=(*ended.warnings, *sentences))]

    def _verify(self, _planned: Planned) -> list[Ended]:
        return [self._execute(run_commands.verify(self.job, self.config, _words(self._present())))]

    def _copy(self, planned: Planned) -> list[Ended]:
        assert planned.target is not None
        return [self._execute(run_commands.copy(self.job, self.config, planned.target, _words(self._present())))]

    def _copy_prune(self, planned: Planned) -> list[Ended]:
        assert planned.target is not None
        return [self._execute(run_commands.copy_prune(self.job, self.config, planned.target, self._there(planned)))]

    def _copy_verify(self, planned: Planned) -> list[Ended]:
        assert planned.target is not None
        return [self._execute(run_commands.copy_verify(self.job, self.config, planned.target, self._there(planned)))]

    def _audit(self, _planned: Planned) -> list[Ended]:
        backed = [one for one in self._backed if one.result.outcome is Outcome.DONE]
        if not backed:
            raise _NotDoneError("no domain was backed up")
        ended = []
        for one in backed:
            argv = run_commands.audit(self.job, self.config, one.result.uuid or one.result.name, one.uri)
            ended.append(replace(self._execute(argv), domain=one.result.name))
            if self.world.stop.signum is not None:
                break
        return ended

    _DO: ClassVar[Mapping[StepKind, Callable[[JobRun, Planned], list[Ended]]]] = {
        StepKind.BACKUP: _backup,
        StepKind.PRUNE: _prune,
        StepKind.COPY: _copy,
        StepKind.COPY_PRUNE: _copy_prune,
        StepKind.VERIFY: _verify,
        StepKind.COPY_VERIFY: _copy_verify,
        StepKind.AUDIT: _audit,
    }

    # what they are about

    def _present(self) -> StepDomains:
        """Return the domains of the job in the repository. Raises _NotDoneError if there is none, VbackupError."""
        repository = self._repository()
        uuids = [*repository.uuids(), *repository.linked()]
        if not run_commands.has_all(self.job):
            backed = {one.result.uuid for one in self._backed}
            belonging = run_commands.belonging(self.job, {uuid: repository.name_of(uuid) for uuid in uuids})
            uuids = [uuid for uuid in uuids if uuid in belonging or uuid in backed]
        if not uuids:
            raise _NotDoneError("the repository has no backups of the job yet")
        return StepDomains(uuids, run_commands.has_all(self.job))

    def _there(self, planned: Planned) -> list[str]:
        uuids = self._copied.get(planned.target or "", [])
        if not uuids:
            raise _NotDoneError(f"nothing was copied to {planned.target}")
        return uuids

    def _note_future(self) -> None:
        """Note a backup that is later than now as unusual; the rules of a prune keep it, and do not count it."""
        with suppress(OSError, VbackupError, _NotDoneError):
            repository, latest = self._repository(), names.stamp(self.world.now() + due.AHEAD)
            known_as = {one.uuid: one.name for one in self.run.domains}
            for uuid in self._present().uuids:
                late = [one.name for one in (repository.path / uuid).iterdir() if names.BACKUP_ID.fullmatch(one.name)]
                if late and max(late) > latest:
                    name = known_as.get(uuid) or repository.name_of(uuid)  # it need not be one of this run
                    self._warn(
                        f"backup {max(late)} of domain {name} is of the future: the clock is wrong, or was when it was"
                        " made"
                    )

    def _warn(self, reason: str) -> None:
        """Make it part of what is unusual about the run, once."""
        if reason not in self._warned:
            self._warned.add(reason)
            self.world.reporter.warning(f"{reason[:1].upper()}{reason[1:]}.")
            self.run = replace(self.run, unusual=(*self.run.unusual, f"{reason[:1].upper()}{reason[1:]}."))


def ended(run: Run, now: datetime, stop: Stop) -> Run:
    """Return a run whose steps are done with its end, outcome and exit status."""
    status = run_results.joined_status([step.status or 0 for step in run.steps])
    if stop.signum is not None:
        return replace(run, ended=now, outcome=Outcome.INTERRUPTED, status=int(Status.SIGNAL + stop.signum))
    return replace(run, ended=now, outcome=_outcome(run.steps), status=status)


def _outcome(steps: Sequence[Step]) -> Outcome:
    failed = [step for step in steps if step.outcome in _FAILED]
    if not failed:
        return Outcome.DONE
    # That a report was written of it makes a night in which nothing was backed up no better.
    begun = [step for step in steps if step.outcome is not Outcome.SKIPPED and step.kind not in _TOLD]
    return Outcome.FAILED if all(step.outcome is Outcome.FAILED for step in begun) else Outcome.SOME_FAILED


def _words(domains: StepDomains) -> list[str] | None:
    return None if domains.are_all else domains.uuids


def _since(begun_s: float) -> float:
    return round(time.monotonic() - begun_s, 3)


_TITLES = {
    StepKind.BACKUP: "backing up",
    StepKind.PRUNE: "removing old backups",
    StepKind.COPY: "copying to {}",
    StepKind.COPY_PRUNE: "removing old copies at {}",
    StepKind.VERIFY: "verifying",
    StepKind.COPY_VERIFY: "verifying copies at {}",
    StepKind.AUDIT: "auditing",
    StepKind.METRICS: "writing metrics",
    StepKind.REPORT: "writing the report",
}


def title(kind: StepKind, target: str | None) -> str:
    """Return what a step does, for people."""
    return _TITLES[kind].format(target)
