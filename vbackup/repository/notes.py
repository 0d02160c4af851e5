"""The note of a backup: a line for people, in the file ``note`` in its directory.

It is in a separate file from the beginning, and not in the manifest: it can be changed at any time, and a committed
manifest is not. So there is one place to look for it, and one to write it. It is never needed to read the backup.
"""

from __future__ import annotations

from pathlib import Path

from vbackup.config.values import MAX_NOTE_CHARACTERS as MAX_CHARACTERS
from vbackup.config.values import note_fault
from vbackup.files import fsync, read_regular, replace_text, storage_errors

#: Name of the file in a backup's directory.
NOTE = "note"

#: Why a text cannot be a note, as the end of a sentence, or None.
fault = note_fault


def data(text: str) -> bytes:
    """Return the content of the file with that note."""
    return f"{text}\n".encode()


def read(directory: Path) -> str | None:
    """Return the note of the backup in that directory; None if there is none, or none that vbackup would write."""
    try:
        text = read_regular(directory / NOTE, max_bytes=4 * MAX_CHARACTERS + 1).decode().rstrip("\n")
    except (OSError, ValueError):
        return None
    return text if fault(text) is None else None


def write(directory: Path, text: str) -> None:
    """Give the backup in that directory a note in place of the one it has. Raises StorageError, NoSpaceError."""
    with storage_errors(f"write {directory / NOTE}"):
        replace_text(directory / NOTE, data(text).decode())


def remove(directory: Path) -> None:
    """Remove the note, if there is one. Raises StorageError."""
    with storage_errors(f"remove {directory / NOTE}"):
        try:
            (directory / NOTE).unlink()
        except FileNotFoundError:
            return
        fsync(directory)
