"""What was tried for a time of a job's calendar, where the record of its runs cannot be kept: once, not at every call.

    RUN/attempts/HASH.json    by the state directory, the job and what was tried; a boot forgets it

RUN is /run/vbackup for root, for others $XDG_RUNTIME_DIR/vbackup, or vbackup-UID in the directory for temporary files.
Without it, each call of a timer or of cron would back up again, fail again, and tell so again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import make_private, read_regular, replace_text, storage_errors

_MAX_BYTES = 4096


class What(Enum):
    """What was tried."""

    RUN = "run"  #: the job was run, and no signal ended that
    BEGIN = "begin"  #: it could not even begin, which was told


@dataclass(frozen=True)
class Attempts:
    """Those of a job; ``state``: the directory in which its record should be."""

    state: Path
    job: str

    def time(self, what: What, scheduled: datetime, cause: str = "") -> datetime | None:
        """Return when it was tried for that time of the calendar; None if it was not, or that is not known.

        ``cause``: what it was noted with; with another one, it was not tried.
        """
        path = self._path(what)
        try:
            if not path.exists():
                return None
            _make_private(path)
            text = read_regular(path, max_bytes=_MAX_BYTES).decode()
            fields = Fields(parse_json(text), what.value, StorageError)
            if (fields.number("scheduled"), fields.text("cause")) != (scheduled.timestamp(), _hashed(cause)):
                return None
            return datetime.fromtimestamp(fields.number("time"), timezone.utc)
        except (OSError, ValueError, OverflowError, RecursionError, StorageError):
            return None

    def note(self, what: What, scheduled: datetime, now: datetime, cause: str = "") -> None:
        """Remember that it was tried now, in place of what was noted before. Raises StorageError, NoSpaceError."""
        path = self._path(what)
        tried = {"scheduled": scheduled.timestamp(), "time": now.timestamp(), "cause": _hashed(cause)}
        with storage_errors(f"write {path}"):
            _make_private(path)
            replace_text(path, json.dumps(tried) + "\n")

    def _path(self, what: What) -> Path:
        key = os.fsencode(os.path.realpath(self.state)) + f"\0{self.job}\0{what.value}".encode()
        return directory() / "attempts" / f"{hashlib.sha256(key).hexdigest()[:16]}.json"


def _make_private(path: Path) -> None:
    """Make the directories of a file, unless they exist. Raises OSError, and StorageError if others could change them.

    One in /tmp may be of anybody, who could say that each job was run.
    """
    make_private(path.parent.parent)
    make_private(path.parent)


def _hashed(cause: str) -> str:
    return hashlib.sha256(cause.encode(errors="surrogatepass")).hexdigest()[:16]


def directory() -> Path:
    """Return where this user's files are that a boot may remove."""
    if os.geteuid() == 0:
        return Path("/run/vbackup")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime) / "vbackup" if runtime else Path(tempfile.gettempdir()) / f"vbackup-{os.geteuid()}"
