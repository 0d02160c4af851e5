"""Protect a backup from being removed: the file ``protected`` in its directory, which says since when and why.

The manifest does not have it: a committed manifest is not changed, and an older vbackup reads the backup all the same.
The file is never needed to read the backup. What it says is for people; that it is there protects, so a file that
cannot be read protects as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import fsync, read_regular, replace_text, storage_errors
from vbackup.repository import manifest

#: Name of the file in a backup's directory.
PROTECTED = "protected"
SCHEMA = "vbackup.protected/1"
#: A reason is a note (vbackup.repository.notes), in which every character may take six bytes of JSON.
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class Protection:
    """Since when a backup is protected, and why; None if it is not known."""

    since: datetime | None = None
    reason: str | None = None


def read(directory: Path) -> Protection | None:
    """Return the protection of the backup in that directory, None if it is not protected.

    What cannot be read of it is None, but protects.
    """
    path = directory / PROTECTED
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return Protection()
    try:
        fields = Fields(parse_json(read_regular(path, max_bytes=_MAX_BYTES).decode()), PROTECTED, ChainError)
        since = fields.optional_text("time")
        return Protection(
            manifest.time(since, PROTECTED) if since is not None else None, fields.optional_text("reason")
        )
    except (OSError, ValueError, RecursionError, ChainError):
        return Protection()


def protect(directory: Path, protection: Protection) -> None:
    """Protect the backup in that directory, whether it was before or not. Raises StorageError, NoSpaceError."""
    since = None if protection.since is None else manifest.iso(protection.since)
    document = {"schema": SCHEMA, "time": since, "reason": protection.reason}
    with storage_errors(f"write {directory / PROTECTED}"):
        replace_text(directory / PROTECTED, json.dumps(document, ensure_ascii=False) + "\n")


def unprotect(directory: Path) -> None:
    """Take the protection away, if there is one. Raises StorageError."""
    with storage_errors(f"remove {directory / PROTECTED}"):
        try:
            (directory / PROTECTED).unlink()
        except FileNotFoundError:
            return
        fsync(directory)
