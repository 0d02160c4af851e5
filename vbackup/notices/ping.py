"""Pings as healthchecks.io and those that do the same take them: URL/start, then URL or URL/fail.

The server notices when no ping comes, which nobody on this machine could tell. So every run is told, and the server
decides who hears of it. Both pings of a run have the same run id (rid), which makes the server measure it.
"""

from __future__ import annotations

import uuid
from enum import Enum
from urllib.parse import urlencode, urlunsplit

from vbackup.errors import NoticeError, Retry
from vbackup.notices import requests
from vbackup.notices.requests import Post
from vbackup.runs.record import Run

#: What the server keeps of the text of a ping.
MAX_BYTES = 100_000
_CUT = "[...]\n"
#: The beginning of a line is looked for so far.
_LINE_BYTES = 10_000
_NAMESPACE = uuid.UUID("d0b6a7ee-5f5c-4c8c-9d55-0f5e3c8f2a11")
#: What hc-ping.com answers with status 200.
_UNKNOWN = "(not found)"
_LIMITED = "(rate limited)"


class Signal(Enum):
    """What a ping says; the value is the last part of its path."""

    START = "start"
    SUCCESS = ""
    FAIL = "fail"
    LOG = "log"  #: nothing changes at the server; for a test


def run_id(run: Run) -> uuid.UUID:
    """Return the id of a run: the same for its start and its end, and of no other run."""
    return uuid.uuid5(_NAMESPACE, "\n".join((run.host, run.repository, run.job, run.id)))


def send(notifier: str, url: str, signal: Signal, *, rid: uuid.UUID | None, text: str, timeout_s: float) -> None:
    """Send one ping with the end of the text. Raises NoticeError."""
    parts = requests.check_url(notifier, url)
    path = "/".join(one for one in (parts.path.rstrip("/"), signal.value) if one)
    query = "&".join(one for one in (parts.query, "" if rid is None else urlencode({"rid": str(rid)})) if one)
    full = urlunsplit(parts._replace(path=path, query=query))
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    answer = requests.send(Post(notifier, full, tail(text), headers), timeout_s)
    if _UNKNOWN in answer:
        raise NoticeError(
            notifier, "the server has no check of this URL; compare it with the one that it shows", retry=Retry.NEVER
        )
    if _LIMITED in answer:
        raise NoticeError(notifier, "the server has had too many pings in this minute")


def tail(text: str) -> bytes:
    """Return the text as UTF-8 in MAX_BYTES: all of it, or its end from the beginning of a line."""
    data = text.encode("utf-8", "replace")
    if len(data) <= MAX_BYTES:
        return data
    kept = data[-(MAX_BYTES - len(_CUT)) :]
    line = kept.find(b"\n") + 1
    # Without a line end near, a character may have been cut.
    kept = kept[line:] if 0 < line <= _LINE_BYTES else kept.decode("utf-8", "ignore").encode()
    return _CUT.encode() + kept
