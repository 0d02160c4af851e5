"""Facts and states with values nobody cares about filled in."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tests.unit.builders import UUID, backup
from vbackup import names
from vbackup.config.calendar import Calendar
from vbackup.config.model import Job, Place
from vbackup.model import Backup, Level
from vbackup.overview.facts import DomainFacts, Facts, HostFacts, JobFacts, LiveDomain, RepositoryFacts
from vbackup.overview.state import DomainState, JobState, Overview, RepositoryState
from vbackup.repository.glance import Glance, SeenBackup, SeenImage
from vbackup.runs.record import Fault, Outcome, Run

NOW = datetime(2026, 11, 30, 9, 0, tzinfo=timezone.utc)
NIGHT = datetime(2026, 11, 30, 1, 0, tzinfo=timezone.utc)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOUR_S = 3600.0
#: A second domain.
OTHER = "f0000000-0000-4000-8000-000000000002"
FAULT = Fault("STORAGE_UNUSABLE", 7, "Cannot write /srv/backup: the disk is gone.")


def made(age: timedelta = NOW - NIGHT, *, sequence: int = 1, **changes: Any) -> Backup:
    """A full of that age."""
    time_then = NOW - age
    values: dict[str, Any] = {"id": names.backup_id(time_then, Level.FULL), "time": time_then, **changes}
    return backup(sequence, **values)


def glance(*backups: Backup, **changes: Any) -> Glance:
    """What is seen of these backups, the newest last."""
    seen = tuple(
        SeenBackup(one.id, one.sequence, one.time, one.level.value, 4096, 1024, (SeenImage("vda", None, 4096),))
        for one in backups
    )
    values: dict[str, Any] = {
        "uuid": UUID,
        "name": "web",
        "ids": frozenset(one.id for one in backups),
        "newest": seen[-1] if seen else None,
        "chain_images": 1 if backups else 0,
        "broken": None,
        "latest": seen,
        "size_bytes": 4096 * len(backups),
        "verified": None,
        "verdict": None,
        "damaged": (),
    }
    return Glance(**{**values, **changes})


def domain(seen: Glance | None = None, **copies: frozenset[str]) -> DomainFacts:
    return DomainFacts(glance(made()) if seen is None else seen, copies)


def repository(*domains: DomainFacts, **changes: Any) -> RepositoryFacts:
    values: dict[str, Any] = {
        "name": "main",
        "path": "/srv/backup",
        "domains": domains,
        "free_bytes": 500 << 30,
        "size_bytes": 1000 << 30,
    }
    return RepositoryFacts(**{**values, **changes})


def job(*live: LiveDomain, runs: tuple[Run, ...] | None = None, error: str | None = None, **changes: Any) -> JobFacts:
    """The job "nightly" of every domain, at 1:00 UTC; its host has these domains."""
    values: dict[str, Any] = {
        "name": "nightly",
        "repository": "main",
        "place": Place(Path("/etc/vbackup/vbackup.toml"), 1),
        "calendar": Calendar((NIGHT.astimezone().time().replace(tzinfo=None),)),
        "max_age_s": 26 * HOUR_S,
    }
    host = HostFacts(None, None if error is not None else live, error)
    return JobFacts(Job(**{**values, **changes}), (host,), (run(),) if runs is None else runs)


def run(**changes: Any) -> Run:
    """The run of last night, which was good."""
    started = changes.get("started", NIGHT)
    values: dict[str, Any] = {
        "id": f"{started:%Y%m%dT%H%M%SZ}",
        "job": "nightly",
        "repository": "/srv/backup",
        "host": "hypervisor",
        "scheduled": started,
        "started": started,
        "ended": started + HOUR,
        "outcome": Outcome.DONE,
        "status": 0,
    }
    return Run(**{**values, **changes})


def live(name: str = "web", uuid: str = UUID, why_not: str | None = None) -> LiveDomain:
    return LiveDomain(name, uuid, why_not)


def facts(*, jobs: tuple[JobFacts, ...] | None = None, **changes: Any) -> Facts:
    """One domain, backed up last night, in one repository, by one job."""
    values: dict[str, Any] = {
        "time": NOW,
        "host": "hypervisor",
        "jobs": (job(live()),) if jobs is None else jobs,
        "repositories": (repository(domain()),),
    }
    return Facts(**{**values, **changes})


def only_domain(overview: Overview) -> DomainState:
    (found,) = overview.domains
    return found


def only_job(overview: Overview) -> JobState:
    (found,) = overview.jobs
    return found


def only_repository(overview: Overview) -> RepositoryState:
    (found,) = overview.repositories
    return found
