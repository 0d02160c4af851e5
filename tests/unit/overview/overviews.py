"""Overviews and backups for the tests of what is made of them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from vbackup.overview.points import Point
from vbackup.overview.state import DomainState, Health, JobState, Overview, PointState, RepositoryState
from vbackup.runs.record import Fault

UUID = "f0000000-0000-4000-8000-000000000001"
NOW = datetime(2026, 11, 30, 8, 0, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)


def point(nights_ago: int, *, base: Point | None = None, **changes: Any) -> Point:
    """A backup at two in the morning; an incremental if it has a base."""
    time = NOW - timedelta(days=nights_ago, hours=6)
    level = "full" if base is None else "incremental"
    values: dict[str, Any] = {
        "id": f"{time:%Y%m%dT%H%M%SZ}-{level}",
        "time": time,
        "level": level,
        "base": None if base is None else base.id,
        "size_bytes": 1024**3,
        "changed_bytes": None if base is None else 2 * 1024**2,
        "verdict": "good",
    }
    return Point(**{**values, **changes})


def chain(nights: int) -> list[Point]:
    """A full, and an incremental each night since, until last night."""
    points = [point(nights - 1)]
    for ago in reversed(range(nights - 1)):
        points.append(point(ago, base=points[-1]))
    return points


def domain(name: str = "web", **changes: Any) -> DomainState:
    values: dict[str, Any] = {
        "name": name,
        "uuid": UUID,
        "repository": "main",
        "job": "nightly",
        "last": PointState("20261130T020000Z-incremental", NOW - 6 * HOUR, "incremental", 1024**2),
        "age_s": 6 * 3600.0,
        "max_age_s": 26 * 3600.0,
        "is_overdue": False,
        "backups": 30,
        "chain_images": 7,
        "verified": NOW - 5 * HOUR,
        "verdict": "good",
        "damaged": (),
        "copies": (),
        "fault": None,
        "unusual": (),
        "changed_bytes": (),
        "health": Health.OK,
        "reasons": (),
    }
    return DomainState(**{**values, **changes})


def overdue(name: str = "db", **changes: Any) -> DomainState:
    reasons = ("The newest backup is 3 d old, but job nightly promises 26 h.",)
    return domain(name, is_overdue=True, age_s=3 * 86400.0, health=Health.CRITICAL, **{"reasons": reasons, **changes})


def never(name: str = "new", **changes: Any) -> DomainState:
    return domain(
        name,
        uuid=None,
        last=None,
        age_s=None,
        is_overdue=True,
        backups=0,
        chain_images=0,
        verified=None,
        verdict="unverified",
        health=Health.CRITICAL,
        **{"reasons": ("It was never backed up.",), **changes},
    )


def job(name: str = "nightly", **changes: Any) -> JobState:
    values: dict[str, Any] = {
        "name": name,
        "repository": "main",
        "last_run": None,
        "last_good": NOW - 6 * HOUR,
        "next_run": NOW + 18 * HOUR,
        "is_running": False,
        "is_missed": False,
        "health": Health.OK,
        "reasons": (),
    }
    return JobState(**{**values, **changes})


def repository(name: str = "main", **changes: Any) -> RepositoryState:
    values: dict[str, Any] = {
        "name": name,
        "path": "/srv/backup",
        "fault": None,
        "free_bytes": 300 * 1024**3,
        "size_bytes": 1000 * 1024**3,
        "backups_bytes": 400 * 1024**3,
        "growth_bytes_day": 2.0 * 1024**3,
        "days_until_full": 150.0,
        "health": Health.OK,
        "reasons": (),
    }
    return RepositoryState(**{**values, **changes})


def unmounted() -> RepositoryState:
    message = "/srv/backup is not a vbackup repository; is the disk mounted?"
    return repository(
        fault=Fault("STORAGE", 7, message),
        free_bytes=None,
        size_bytes=None,
        backups_bytes=None,
        growth_bytes_day=None,
        days_until_full=None,
        health=Health.CRITICAL,
        reasons=(message,),
    )


def overview(*domains: DomainState, **changes: Any) -> Overview:
    shown = domains or (domain(),)
    repositories = changes.get("repositories", (repository(),))
    jobs = changes.get("jobs", (job(),))
    values: dict[str, Any] = {
        "time": NOW,
        "host": "backup1",
        "health": max(one.health for one in (*shown, *jobs, *repositories)),
        "jobs": jobs,
        "domains": shown,
        "repositories": repositories,
    }
    return Overview(**{**values, **changes})
