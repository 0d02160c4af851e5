"""Runs and overviews of a job, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from vbackup.config.calendar import Calendar
from vbackup.config.model import Config, Job, Notifier, Place, When
from vbackup.overview.state import DomainState, Health, JobState, Overview, PointState
from vbackup.runs.record import DomainResult, Fault, Outcome, Run, Step, StepKind

STARTED = datetime(2026, 11, 30, 1, 0, tzinfo=timezone.utc)
PLACE = Place(Path("/etc/vbackup/vbackup.toml"), 1)
NO_SPACE = "Cannot write web.qcow2: no space left. Free some space and run the same command again."
USUAL = frozenset((When.FAILURE, When.RECOVERY, When.OVERDUE, When.UNUSUAL))


def run(*failed: str, job: str = "nightly", number: int = 0, code: str = "NO_SPACE", **more: Any) -> Run:
    """A run of three domains, of which some failed; ``number``: of the night."""
    started = STARTED + timedelta(days=number)
    domains = tuple(
        DomainResult(name, f"uuid-{name}", Outcome.FAILED, fault=Fault(code, 7, NO_SPACE, name))
        if name in failed
        else DomainResult(name, f"uuid-{name}", Outcome.DONE, "20261130T010000Z", "incremental", 1024**2)
        for name in ("web", "db", "mail")
    )
    outcome = Outcome.FAILED if len(failed) == 3 else Outcome.SOME_FAILED if failed else Outcome.DONE
    status = 0 if not failed else 7 if len(failed) == 3 else 3
    faults = tuple(one.fault for one in domains if one.fault is not None)
    backup = Step(StepKind.BACKUP, outcome, started, 60.0, status, faults=faults, summary="3 domains")
    prune = Step(StepKind.PRUNE, Outcome.DONE, started, 1.0, 0, summary="2 backups removed")
    made = Run(
        id=f"{started:%Y%m%dT%H%M%SZ}",
        job=job,
        repository="/srv/backup",
        host="hv1",
        scheduled=started,
        started=started,
        ended=started + timedelta(minutes=12),
        outcome=outcome,
        status=status,
        steps=(backup, prune),
        domains=domains,
    )
    return replace(made, **more)


def domain(name: str, *, is_overdue: bool = False, job: str | None = "nightly") -> DomainState:
    """The state of a domain."""
    age_s = 3 * 86400.0 if is_overdue else 3600.0
    last = PointState("20261127T010000Z", STARTED - timedelta(seconds=age_s), "incremental", 1024)
    return DomainState(
        name=name,
        uuid=f"uuid-{name}",
        repository="main",
        job=job,
        last=last,
        age_s=age_s,
        max_age_s=93600.0,
        is_overdue=is_overdue,
        backups=3,
        chain_images=3,
        verified=None,
        verdict="good",
        damaged=(),
        copies=(),
        fault=None,
        unusual=(),
        changed_bytes=(),
        health=Health.CRITICAL if is_overdue else Health.OK,
        reasons=(),
    )


def overview(*domains: DomainState, jobs: Sequence[str] = ("nightly",)) -> Overview:
    """Of these domains."""
    states = tuple(
        JobState(name, "main", None, None, None, is_running=False, is_missed=False, health=Health.OK, reasons=())
        for name in jobs
    )
    return Overview(STARTED, "hv1", Health.OK, states, domains, ())


def job(name: str = "nightly", **more: Any) -> Job:
    """A job."""
    return Job(name, "main", PLACE, calendar=Calendar((STARTED.time(),)), **more)


def config(*notifiers: Notifier, jobs: Mapping[str, Job] | None = None) -> Config:
    """A configuration with these notifiers."""
    return Config(
        paths=(PLACE.path,),
        repositories={},
        targets={},
        jobs={"nightly": job()} if jobs is None else jobs,
        notifiers={one.name: one for one in notifiers},
    )
