"""What is known before it is judged: by the configuration, the repositories, libvirt and the record of runs.

vbackup.operations.status gathers it, vbackup.overview.assess judges it. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vbackup import names
from vbackup.config.model import Job
from vbackup.repository.glance import Glance
from vbackup.runs.record import Fault, Outcome, Run


@dataclass(frozen=True)
class LiveDomain:
    """A domain that libvirt has."""

    name: str
    uuid: str
    why_not: str | None = None  #: why it cannot be backed up, and nobody expects it; None if it can, or has backups


@dataclass(frozen=True)
class HostFacts:
    """A host of libvirt."""

    uri: str | None  #: None: libvirt's default
    domains: tuple[LiveDomain, ...] | None  #: None: it was not asked, or did not answer
    error: str | None = None  #: why it did not answer


@dataclass(frozen=True)
class DomainFacts:
    """The backups of a domain in a repository, and which of them are at targets."""

    seen: Glance
    copies: Mapping[str, frozenset[str]] = field(default_factory=dict)  #: ids at a target that is known, by its name


@dataclass(frozen=True)
class RepositoryFacts:
    """A repository; of one that cannot be read, why, and what is remembered of it."""

    name: str
    path: str
    fault: Fault | None = None
    domains: tuple[DomainFacts, ...] = ()
    free_bytes: int | None = None
    size_bytes: int | None = None  #: of its filesystem
    growth_bytes_day: float | None = None  #: of what is taken on the filesystem, by whomever
    targets: frozenset[str] = frozenset()  #: names of the targets of which it has a ledger
    last_read: datetime | None = None  #: when ``domains`` and ``targets`` were read, if it cannot be read now

    @property
    def is_known(self) -> bool:
        """True if it is known, now or from before, which domains it has."""
        return self.fault is None or self.last_read is not None


@dataclass(frozen=True)
class JobFacts:
    """A job, the hosts that it asks, and its runs."""

    job: Job
    hosts: tuple[HostFacts, ...] = ()
    runs: tuple[Run, ...] = ()  #: the newest first
    runs_error: str | None = None  #: why its runs are not known

    @property
    def whole_runs(self) -> tuple[Run, ...]:
        """Its runs without those of other domains than it has: the job is judged by these."""
        return tuple(run for run in self.runs if not run.is_partial)

    @property
    def latest_runs(self) -> tuple[Run, ...]:
        """The newest whole run that has ended, and all that are newer: what they did for a domain is the latest."""
        runs = enumerate(self.runs, 1)
        end = next((number for number, run in runs if not run.is_partial and run.outcome is not Outcome.RUNNING), None)
        return self.runs[:end]

    @property
    def is_asked(self) -> bool:
        """True if all its hosts have answered: what libvirt does not have, does not exist."""
        return bool(self.hosts) and all(one.domains is not None for one in self.hosts)

    @property
    def may_miss_domains(self) -> bool:
        """True if it is of all domains, or those of a pattern, and a host did not answer which it has."""
        is_open = not self.job.domains or any(names.is_pattern(word) for word in self.job.domains)
        return is_open and any(one.error is not None for one in self.hosts)

    @property
    def live(self) -> tuple[LiveDomain, ...]:
        """The domains of its hosts, as far as they have answered."""
        return tuple(domain for host in self.hosts for domain in host.domains or ())


@dataclass(frozen=True)
class Facts:
    """All of it."""

    time: datetime
    host: str
    jobs: tuple[JobFacts, ...]
    repositories: tuple[RepositoryFacts, ...]
    is_configured: bool = True  #: False: nobody has written down which jobs there are
    max_age_s: float | None = None  #: of all domains, in place of what their jobs promise
    booted: datetime | None = None  #: when this machine was started, by the clock of today
    warnings: tuple[str, ...] = ()
