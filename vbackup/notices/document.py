"""What a webhook gets: the message as JSON, with the report of the run in it. Does no I/O.

``text`` is a member because chats (Mattermost, Rocket.Chat, Slack) show it as it is.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import vbackup
from vbackup.config.model import When
from vbackup.notices.occasion import Occasion
from vbackup.overview.state import DomainState
from vbackup.runs import documents

SCHEMA = "vbackup.notice/1"


def document(occasion: Occasion, *, message: str, host: str, time: datetime, title: str, text: str) -> dict[str, Any]:
    """Return the message as a JSON object; ``message``: its id."""
    made = _message(message, host=host, time=time, title=title, text=text)
    return {
        **made,
        "reasons": [one.value for one in occasion.reasons],
        "run": None if occasion.run is None else documents.document(occasion.run),
        "overdue": [_overdue(one) for one in occasion.overdue],
        "recovered": list(occasion.recovered),
        "unusual": list(occasion.unusual),
        "failed_since": _iso(occasion.failed_since),
    }


def document_of_test(*, message: str, host: str, time: datetime, title: str, text: str) -> dict[str, Any]:
    """Return the message of 'vbackup notify test' as a JSON object."""
    made = _message(message, host=host, time=time, title=title, text=text)
    return {
        **made,
        "reasons": ["test"],
        "run": None,
        "overdue": [],
        "recovered": [],
        "unusual": [],
        "failed_since": None,
    }


def _message(message: str, *, host: str, time: datetime, title: str, text: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "id": message,
        "time": _iso(time),
        "host": host,
        "version": vbackup.__version__,
        "title": title,
        "text": text,
    }


def worst(occasion: Occasion, *, is_bad: bool) -> str:
    """Return what kind of message it is, in apprise's words: failure, warning, success or info."""
    if is_bad:
        return "failure"
    if {When.OVERDUE, When.UNUSUAL} & set(occasion.reasons):
        return "warning"
    return "success" if occasion.run is not None else "info"


def _overdue(one: DomainState) -> dict[str, Any]:
    return {
        "domain": one.name,
        "uuid": one.uuid,
        "repository": one.repository,
        "job": one.job,
        "last": None if one.last is None else _iso(one.last.time),
        "age_s": one.age_s,
        "max_age_s": one.max_age_s,
    }


def _iso(time: datetime | None) -> str | None:
    if time is None:
        return None
    return time.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
