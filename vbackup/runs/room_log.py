"""What was taken on the filesystem of each repository, some times a day: how fast it fills up.

    STATE/room/HASH.json     the newest MAX_ENTRIES of a repository, by the hash of its path

Nothing needs it: a log that cannot be read or written only means that nothing is known of the future.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import make_private, read_regular, replace_text, storage_errors

#: Entries are this far apart: four a day, for a month.
INTERVAL = timedelta(hours=6)
MAX_ENTRIES = 120
#: Less says nothing: a backup every night, and a prune every Sunday.
MIN_SPAN = timedelta(days=2)
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What was taken at a time."""

    time: datetime
    used_bytes: int  #: on the filesystem, by whomever
    size_bytes: int  #: of the filesystem


@dataclass(frozen=True)
class RoomLog:
    """The log of a repository; ``state``: vbackup.runs.store.default_directory()."""

    state: Path
    repository: str  #: its path

    @property
    def path(self) -> Path:
        """The file."""
        name = hashlib.sha256(os.fsencode(os.path.realpath(self.repository))).hexdigest()[:16]
        return self.state / "room" / f"{name}.json"

    def read(self) -> Sequence[Entry]:
        """Return the entries, oldest first; none if there is no log, or it cannot be read."""
        try:
            text = read_regular(self.path, max_bytes=_MAX_BYTES).decode()
            entries = Fields(parse_json(text), self.path.name, StorageError).objects("entries")
            return [
                Entry(
                    datetime.fromtimestamp(one.number("time"), timezone.utc),
                    one.integer("used_bytes"),
                    one.integer("size_bytes"),
                )
                for one in entries
            ]
        except (OSError, ValueError, OverflowError, RecursionError, StorageError):
            return []

    def note(self, entry: Entry) -> None:
        """Add an entry unless there is one of the last hours. What is later than that, by a clock that was wrong, goes.

        Raises StorageError, NoSpaceError.
        """
        entries = [one for one in self.read() if one.time <= entry.time]
        if entries and entry.time - entries[-1].time < INTERVAL:
            return
        kept = [*entries, entry][-MAX_ENTRIES:]
        document = {
            "entries": [
                {"time": one.time.timestamp(), "used_bytes": one.used_bytes, "size_bytes": one.size_bytes}
                for one in kept
            ]
        }
        with storage_errors(f"write {self.path}"):
            make_private(self.state)
            make_private(self.path.parent)
            replace_text(self.path, json.dumps(document) + "\n")


def growth_bytes_day(entries: Sequence[Entry]) -> float | None:
    """Return by how much more is taken every day, by the line that fits the entries best; None if they are too few.

    Only those count that were made since the filesystem has the size that it has.
    """
    same = [one for one in entries if one.size_bytes == entries[-1].size_bytes]
    if not same or same[-1].time - same[0].time < MIN_SPAN:
        return None
    days = [(one.time - same[0].time) / timedelta(days=1) for one in same]
    middle, used = sum(days) / len(days), sum(one.used_bytes for one in same) / len(same)
    with suppress(ZeroDivisionError):
        return sum((day - middle) * (one.used_bytes - used) for day, one in zip(days, same)) / sum(
            (day - middle) ** 2 for day in days
        )
    return None
