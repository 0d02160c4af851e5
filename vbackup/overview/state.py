"""Is everything backed up? The answer as values: schema vbackup.status/1. Does no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from vbackup.runs.record import Fault, Run


class Health(IntEnum):
    """As plugins of Nagios number it."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class PointState:
    """The newest good backup of a domain."""

    id: str
    time: datetime
    level: str
    size_bytes: int


@dataclass(frozen=True)
class CopyState:
    """The copies of a domain at a target, as this machine's ledger knows them."""

    target: str  #: name of the target
    newest: str | None  #: id of the newest backup there
    time: datetime | None  #: of that backup
    behind: int  #: number of newer backups that are not there


@dataclass(frozen=True)
class DomainState:
    """A domain that a job is to back up, or that has backups."""

    name: str
    uuid: str | None  #: None: never backed up, and libvirt could not be asked
    repository: str  #: name of the repository in the configuration, or its path
    job: str | None  #: None: no job backs it up
    last: PointState | None  #: None: never backed up
    age_s: float | None
    max_age_s: float | None  #: what the job promises
    is_overdue: bool
    backups: int
    chain_images: int  #: length of the chain of the newest backup
    verified: datetime | None  #: when the newest verify of any backup of it ended
    verdict: str  #: of that: "good", "partial", "damaged", "unverified"
    damaged: tuple[str, ...]  #: ids of backups in which damage is known
    copies: tuple[CopyState, ...]
    fault: Fault | None  #: of the last run
    unusual: tuple[str, ...]
    changed_bytes: tuple[tuple[datetime, int], ...]  #: trend: the data of the latest backups, oldest first
    health: Health
    reasons: tuple[str, ...]  #: sentences: why it is not OK
    is_gone: bool = False  #: libvirt has it no more: its backups stay, and nothing is overdue
    size_bytes: int = 0  #: of the images of all its backups
    last_read: datetime | None = None  #: of what moment this is, since the repository cannot be read now; else None


@dataclass(frozen=True)
class JobState:
    """A job."""

    name: str
    repository: str
    last_run: Run | None  #: without the documents of its steps
    last_good: datetime | None  #: when the last run without failure began
    next_run: datetime | None
    is_running: bool
    is_missed: bool  #: a scheduled time has passed without a run
    health: Health
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RepositoryState:
    """A repository."""

    name: str
    path: str
    fault: Fault | None  #: why it cannot be read
    free_bytes: int | None
    size_bytes: int | None  #: of its filesystem
    backups_bytes: int | None  #: what the backups take
    growth_bytes_day: float | None  #: None: not enough is known
    days_until_full: float | None
    health: Health
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """All of it."""

    time: datetime
    host: str
    health: Health  #: the worst
    jobs: tuple[JobState, ...]
    domains: tuple[DomainState, ...]
    repositories: tuple[RepositoryState, ...]
    warnings: tuple[str, ...] = ()  #: libvirt could not be asked, for example
