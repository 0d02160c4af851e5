"""What a webhook gets: the message as JSON, with the report of the run in it. Does no I/O.

``text`` is a member because chats (Mattermost, Rocket.Chat, Slack) show it as it is.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import vbackup
from vbackup.notices.occasion import Occasion
from vbackup.overview.state import DomainState
from vbackup.runs import documents

SCHEMA = "vbackup.notice/1"
#: The reason of 'vbackup notify test'.
TEST = "test"


def document(
    occasion: Occasion | None, *, message: str, host: str, time: datetime, title: str, text: str
) -> dict[str, Any]:
    """Return the message as a JSON object; ``occasion``: None: a test; ``message``: its id."""
    made = {
        "schema": SCHEMA,
        "id": message,
        "time": _iso(time),
        "host": host,
        "version": vbackup.__version__,
        "title": title,
        "text": text,
    }
    if occasion is None:
        empty: dict[str, Any] = {"overdue": [], "recovered": [], "unusual": [], "failed_since": None}
        return {**made, "reasons": [TEST], "run": None, **empty}
    return {
        **made,
        "reasons": [one.value for one in occasion.reasons],
        "run": None if occasion.run is None else documents.document(occasion.run),
        "overdue": [_overdue(one) for one in occasion.overdue],
        "recovered": list(occasion.recovered),
        "unusual": list(occasion.unusual),
        "failed_since": _iso(occasion.failed_since),
    }


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
