"""Keep the result of the last check of a backup's file systems with it: fsck.json.

It is a note, like verified.json. vbackup-repository(5) describes the members; vbackup.operations.fsck makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError
from vbackup.fields import Fields
from vbackup.repository import kept_result, manifest

NAME = "fsck.json"
SCHEMA = "vbackup.fsck/1"
#: States of a file system; accept others.
CLEAN, DAMAGED, UNCHECKED = "clean", "damaged", "unchecked"


@dataclass(frozen=True)
class CheckedFileSystem:
    """A file system of a guest, and what its check has found."""

    name: str  #: DISK, DISK/PARTITION or VG/LV
    type: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class FsckResult:
    """What the checks have found."""

    time: datetime
    disks: tuple[str, ...]
    file_systems: tuple[CheckedFileSystem, ...]
    duration_s: float = 0.0

    def of(self, state: str) -> list[CheckedFileSystem]:
        """Return the file systems in that state."""
        return [one for one in self.file_systems if one.state == state]

    @property
    def is_good(self) -> bool:
        """False if there is damage."""
        return not self.of(DAMAGED)

    @property
    def verdict(self) -> str:
        """The verdict in one word: clean, although some may be unchecked, or damaged."""
        return CLEAN if self.is_good else DAMAGED

    @property
    def reason(self) -> str:
        """What was found, as a sentence."""
        parts = [f"{len(self.of(state))} {state}" for state in (CLEAN, DAMAGED, UNCHECKED) if self.of(state)]
        count = len(self.file_systems)
        return f"{count} file system{'s' * (count != 1)}: {', '.join(parts)}."


def read(directory: Path) -> FsckResult | None:
    """Return the result that is kept in a backup's directory; None if there is none, or it cannot be read."""
    return kept_result.read(directory / NAME, SCHEMA, _parse)


def write(directory: Path, result: FsckResult) -> None:
    """Keep the result in a backup's directory. Raises StorageError, NoSpaceError."""
    kept_result.write(directory / NAME, SCHEMA, document(result))


def document(result: FsckResult) -> Mapping[str, Any]:
    """Return the result as a JSON object, without the schema member."""
    return {
        "time": manifest.iso(result.time),
        "verdict": result.verdict,
        "disks": list(result.disks),
        "file_systems": [vars(one) for one in result.file_systems],
        "duration_s": result.duration_s,
    }


def _parse(fields: Fields) -> FsckResult:
    disks = fields.raw("disks")
    if not isinstance(disks, list) or not all(isinstance(one, str) for one in disks):
        raise ChainError(f"{NAME} has something else where a list of disks should be.")
    return FsckResult(
        manifest.time(fields.text("time"), NAME),
        tuple(disks),
        tuple(
            CheckedFileSystem(one.text("name"), one.text("type"), one.text("state"), one.text("detail"))
            for one in fields.objects("file_systems")
        ),
        fields.number("duration_s"),
    )
