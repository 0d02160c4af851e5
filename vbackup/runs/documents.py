"""The record of a run as the JSON document vbackup.run/1, and back. Does no I/O."""

from __future__ import annotations

from datetime import datetime, timezone
from enum import Enum
from typing import Any, TypeVar

from vbackup.errors import StorageError
from vbackup.fields import Fields
from vbackup.runs.record import DomainResult, Fault, Outcome, Run, Step, StepKind

SCHEMA = "vbackup.run/1"

_Word = TypeVar("_Word", bound=Enum)


def document(run: Run, *, with_details: bool = True) -> dict[str, Any]:
    """Return the run as a JSON object; without details, the documents of its steps are left out."""
    return {
        "schema": SCHEMA,
        "id": run.id,
        "job": run.job,
        "repository": run.repository,
        "host": run.host,
        "scheduled": _iso(run.scheduled),
        "started": _iso(run.started),
        "ended": _iso(run.ended),
        "outcome": run.outcome.value,
        "status": run.status,
        "steps": [_step(step, with_details=with_details) for step in run.steps],
        "domains": [_domain(domain) for domain in run.domains],
        "unusual": list(run.unusual),
        "partial": run.is_partial,
        "notices": list(run.notices),
        "trusted": _iso(run.trusted),
    }


def _step(step: Step, *, with_details: bool) -> dict[str, Any]:
    members = {
        "kind": step.kind.value,
        "target": step.target,
        "outcome": step.outcome.value,
        "started": _iso(step.started),
        "duration_s": step.duration_s,
        "status": step.status,
        "faults": [_fault(fault) for fault in step.faults],
        "warnings": list(step.warnings),
        "reason": step.reason,
        "summary": step.summary,
    }
    return {**members, "document": step.document} if with_details else members


def _domain(domain: DomainResult) -> dict[str, Any]:
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "outcome": domain.outcome.value,
        "backup": domain.backup,
        "level": domain.level,
        "size_bytes": domain.size_bytes,
        "fault": None if domain.fault is None else _fault(domain.fault),
        "unusual": list(domain.unusual),
        "host": domain.host,
    }


def _fault(fault: Fault) -> dict[str, Any]:
    return {"code": fault.code, "status": fault.status, "message": fault.message, "domain": fault.domain}


def read(fields: Fields) -> Run:
    """Return the run that ``document`` describes. Raises StorageError if it is not valid."""
    return Run(
        id=fields.text("id"),
        job=fields.text("job"),
        repository=fields.text("repository"),
        host=fields.text("host"),
        scheduled=_optional_moment(fields, "scheduled"),
        started=_moment(fields.text("started")),
        ended=_optional_moment(fields, "ended"),
        outcome=_word(Outcome, fields.text("outcome")),
        status=fields.integer("status"),
        steps=tuple(map(_read_step, fields.objects("steps"))),
        domains=tuple(map(_read_domain, fields.objects("domains"))),
        is_partial=fields.boolean("partial") if "partial" in fields else False,
        unusual=_texts(fields, "unusual"),
        notices=_texts(fields, "notices"),
        trusted=_optional_moment(fields, "trusted"),
    )


def _read_step(fields: Fields) -> Step:
    return Step(
        kind=_word(StepKind, fields.text("kind")),
        outcome=_word(Outcome, fields.text("outcome")),
        started=_optional_moment(fields, "started"),
        duration_s=fields.number("duration_s") if "duration_s" in fields else None,
        status=fields.integer("status") if "status" in fields else None,
        target=fields.optional_text("target"),
        faults=tuple(map(_read_fault, fields.objects("faults"))),
        warnings=_texts(fields, "warnings"),
        reason=fields.optional_text("reason"),
        summary=fields.text("summary"),
        document=fields.raw("document") if "document" in fields else None,
    )


def _read_domain(fields: Fields) -> DomainResult:
    return DomainResult(
        name=fields.text("name"),
        uuid=fields.optional_text("uuid"),
        outcome=_word(Outcome, fields.text("outcome")),
        backup=fields.optional_text("backup"),
        level=fields.optional_text("level"),
        size_bytes=fields.integer("size_bytes") if "size_bytes" in fields else None,
        fault=_read_fault(fields.object("fault")) if "fault" in fields else None,
        unusual=_texts(fields, "unusual"),
        host=fields.optional_text("host"),
    )


def _read_fault(fields: Fields) -> Fault:
    return Fault(fields.text("code"), fields.integer("status"), fields.text("message"), fields.optional_text("domain"))


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    """Return the strings in a list, in their order; ``Fields.strings`` checks them."""
    fields.strings(name)
    return tuple(fields.raw(name) or ())


def _word(kind: type[_Word], text: str) -> _Word:
    try:
        return kind(text)
    except ValueError as err:
        raise StorageError(f"{text[:50]!r} is none of {', '.join(one.value for one in kind)}.") from err


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _optional_moment(fields: Fields, name: str) -> datetime | None:
    return _moment(fields.text(name)) if name in fields else None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            raise ValueError("it has no time zone")
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError) as err:
        raise StorageError(f"{text[:50]!r} is not a time: {err}.") from err
