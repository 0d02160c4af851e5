"""Record with a backup in a stage of streams for which job it was made (stream.json).

A director names a backup by its job when it says what has become of it. Its level is what was asked for: a director
restores a chain by that, although a disk whose base could not be trusted is in full in any level.
vbackup-repository(5) describes the members.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vbackup import names
from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import read_regular
from vbackup.model import Level

NAME = "stream.json"
SCHEMA = "vbackup.streamed/1"
#: A time of a director's clock, to the second, which is compared with its other times only.
TIME = re.compile(r"[0-9]{4}(\.[0-9]{2}){5}")
#: The most bytes of a job's name.
MAX_JOB_BYTES = 200
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class StreamRecord:
    """For which job a backup was made."""

    job: str
    asked: Level  #: the level that was asked for
    begun: str | None = None  #: when the director had made the job, by its clock (TIME)


def is_job(text: str) -> bool:
    """Return True for what can name a job: it becomes part of the name of a log file."""
    return names.is_printable_part(text, max_bytes=MAX_JOB_BYTES) and not text.startswith(".")


def data(record: StreamRecord) -> bytes:
    """Return the content of the file."""
    document = {"schema": SCHEMA, "job": record.job, "level": record.asked.value}
    if record.begun is not None:
        document["begun"] = record.begun
    return (json.dumps(document, indent=2) + "\n").encode()


def read(directory: Path) -> StreamRecord | None:
    """Return the record of the backup in that directory; None if there is none, or it cannot be read."""
    try:
        fields = Fields(parse_json(read_regular(directory / NAME, max_bytes=_MAX_BYTES).decode()), NAME, ChainError)
        begun = fields.optional_text("begun")
        return StreamRecord(
            fields.text("job"), Level(fields.text("level")), begun if begun and TIME.fullmatch(begun) else None
        )
    except (OSError, ValueError, RecursionError, ChainError):
        return None
