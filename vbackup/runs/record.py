"""One run of a job, as it is kept, printed and told: schema vbackup.run/1. Does no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any


class Outcome(Enum):
    """How a run or a step ended."""

    DONE = "done"
    SOME_FAILED = "some_failed"  #: of several domains, or of several steps
    FAILED = "failed"
    SKIPPED = "skipped"  #: a step that was not begun; ``reason`` says why
    INTERRUPTED = "interrupted"  #: by a signal, or killed, or the machine went down
    RUNNING = "running"


class StepKind(Enum):
    """What a step does, in the order of a run."""

    BACKUP = "backup"
    PRUNE = "prune"
    COPY = "copy"
    COPY_PRUNE = "copy-prune"  #: retention at a target
    VERIFY = "verify"
    COPY_VERIFY = "copy-verify"
    AUDIT = "audit"
    METRICS = "metrics"
    REPORT = "report"


@dataclass(frozen=True)
class Fault:
    """Why something failed: the members of vbackup.error/1 that people need."""

    code: str
    status: int  #: exit status
    message: str  #: one sentence
    domain: str | None = None  #: name, if it concerns one


@dataclass(frozen=True)
class Step:
    """One step: a command of vbackup that the run executed."""

    kind: StepKind
    outcome: Outcome
    started: datetime | None
    duration_s: float | None
    status: int | None  #: its exit status
    target: str | None = None  #: name of the target, for copies
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    reason: str | None = None  #: why it was skipped
    summary: str = ""  #: one sentence: "3 domains, 1.2 GiB"
    document: dict[str, Any] | None = None  #: what the command printed with --json


@dataclass(frozen=True)
class DomainResult:
    """What the run did for a domain."""

    name: str
    uuid: str | None
    outcome: Outcome
    backup: str | None = None  #: id of the backup that was made
    level: str | None = None
    size_bytes: int | None = None
    fault: Fault | None = None
    unusual: tuple[str, ...] = ()  #: sentences
    host: str | None = None  #: name of its host, if the job has several


@dataclass(frozen=True)
class Run:
    """A run of a job."""

    id: str  #: 20261130T010000Z, unique in the job
    job: str
    repository: str  #: its path
    host: str
    scheduled: datetime | None  #: the time of the calendar that it is for; None: somebody ran it
    started: datetime
    ended: datetime | None  #: None: running, or killed
    outcome: Outcome
    status: int  #: exit status; 0 while it is running
    steps: tuple[Step, ...] = ()
    domains: tuple[DomainResult, ...] = ()
    unusual: tuple[str, ...] = ()  #: sentences on the run itself: a jump of the clock, a run that was made up for
    is_partial: bool = False  #: somebody ran it for other domains than those of the configuration
    notices: tuple[str, ...] = ()  #: sentences on messages that could not be sent
    trusted: datetime | None = None  #: clock in doubt, or it only waited: when the last run began whose time is not
