"""The state of everything as the JSON document vbackup.status/1. Does no I/O."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from vbackup.overview import answer
from vbackup.overview.state import CopyState, DomainState, Health, JobState, Overview, RepositoryState
from vbackup.runs.record import Fault, Run

SCHEMA = "vbackup.status/1"
_WORDS = {Health.OK: "ok", Health.WARNING: "warning", Health.CRITICAL: "critical", Health.UNKNOWN: "unknown"}


def word(health: Health) -> str:
    """Return ok, warning, critical or unknown."""
    return _WORDS[health]


def document(overview: Overview) -> dict[str, Any]:
    """Return it as a JSON object, without the schema member."""
    return {
        "time": _iso(overview.time),
        "host": overview.host,
        "health": word(overview.health),
        "jobs": [_job(one) for one in overview.jobs],
        "domains": [_domain(one) for one in overview.domains],
        "repositories": [_repository(one) for one in overview.repositories],
        "warnings": list(overview.warnings),
    }


def _job(one: JobState) -> dict[str, Any]:
    return {
        "name": one.name,
        "repository": one.repository,
        "last_run": None if one.last_run is None else _run(one.last_run),
        "last_good": _iso(one.last_good),
        "next_run": _iso(one.next_run),
        "is_running": one.is_running,
        "is_missed": one.is_missed,
        "health": word(one.health),
        "reasons": list(one.reasons),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "scheduled": _iso(run.scheduled),
        "started": _iso(run.started),
        "ended": _iso(run.ended),
        "outcome": run.outcome.value,
        "status": run.status,
        "steps": [
            {"kind": step.kind.value, "target": step.target, "outcome": step.outcome.value} for step in run.steps
        ],
    }


def _domain(one: DomainState) -> dict[str, Any]:
    last = one.last
    return {
        "name": one.name,
        "uuid": one.uuid,
        "repository": one.repository,
        "job": one.job,
        "last": None
        if last is None
        else {"id": last.id, "time": _iso(last.time), "level": last.level, "size_bytes": last.size_bytes},
        "age_s": one.age_s,
        "max_age_s": one.max_age_s,
        "is_overdue": one.is_overdue,
        "is_gone": one.is_gone,
        "backups": one.backups,
        "size_bytes": one.size_bytes,
        "chain_images": one.chain_images,
        "verified": _iso(one.verified),
        "verdict": one.verdict,
        "damaged": list(one.damaged),
        "copies": [_copy(each) for each in one.copies],
        "fault": _fault(one.fault),
        "unusual": list(one.unusual),
        "changed": [{"time": _iso(time), "changed_bytes": size} for time, size in one.changed_bytes],
        "health": word(answer.state_of(one)),
        "reasons": list(one.reasons),
        "last_read": _iso(one.last_read),
    }


def _copy(one: CopyState) -> dict[str, Any]:
    return {"target": one.target, "newest": one.newest, "time": _iso(one.time), "behind": one.behind}


def _repository(one: RepositoryState) -> dict[str, Any]:
    return {
        "name": one.name,
        "path": one.path,
        "fault": _fault(one.fault),
        "free_bytes": one.free_bytes,
        "size_bytes": one.size_bytes,
        "backups_bytes": one.backups_bytes,
        "growth_bytes_day": one.growth_bytes_day,
        "days_until_full": one.days_until_full,
        "health": word(one.health),
        "reasons": list(one.reasons),
    }


def _fault(fault: Fault | None) -> dict[str, Any] | None:
    if fault is None:
        return None
    return {"code": fault.code, "status": fault.status, "message": fault.message, "domain": fault.domain}


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
