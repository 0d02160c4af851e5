"""What a notifier has been told, so that it is told each thing once. Does no I/O; vbackup.notices.memory keeps it.

A member that is missing or of another type counts as nothing told: a message twice is better than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Failure:
    """Why the newest runs of a job failed."""

    faults: tuple[str, ...]  #: what failed, sorted: "backup//web/NO_SPACE"
    since: str  #: when the first of these runs began (ISO 8601)
    is_told: bool  #: False: the message could not be sent


@dataclass(frozen=True)
class Told:
    """All that one notifier has been told."""

    failures: Mapping[str, Failure] = field(default_factory=dict)  #: by job
    overdue: frozenset[str] = frozenset()  #: "job/repository/domain"
    unusual: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: sentences on the newest run, by job
    unsent: tuple[str, ...] = ()  #: sentences on what was unusual, which could not be sent
    last: str | None = None  #: when the newest message was sent (ISO 8601)
    title: str | None = None  #: of that message
    problem: str | None = None  #: why the newest attempt to send one failed

    @property
    def last_time(self) -> datetime | None:
        """When the newest message was sent."""
        try:
            return None if self.last is None else datetime.fromisoformat(self.last)
        except ValueError:
            return None

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "failures": {
                job: {"faults": list(one.faults), "since": one.since, "told": one.is_told}
                for job, one in sorted(self.failures.items())
            },
            "overdue": sorted(self.overdue),
            "unusual": {job: list(sentences) for job, sentences in sorted(self.unusual.items())},
            "unsent": list(self.unsent),
            "last": self.last,
            "title": self.title,
            "problem": self.problem,
        }


def read(document: Any) -> Told:
    """Return what a JSON document says; what it does not say well was not told."""
    members = document if isinstance(document, dict) else {}
    failures = members.get("failures")
    found = {
        str(job): Failure(_texts(one.get("faults")), str(one.get("since", "")), one.get("told") is True)
        for job, one in (failures.items() if isinstance(failures, dict) else ())
        if isinstance(one, dict)
    }
    unusual = members.get("unusual")
    return Told(
        failures=found,
        overdue=frozenset(_texts(members.get("overdue"))),
        unusual={job: _texts(one) for job, one in (unusual.items() if isinstance(unusual, dict) else ())},
        unsent=_texts(members.get("unsent")),
        last=_text(members.get("last")),
        title=_text(members.get("title")),
        problem=_text(members.get("problem")),
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
