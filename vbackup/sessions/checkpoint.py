"""A checkpoint of a tracker: the bitmap of each disk, which records what changes from that moment on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any, TypeVar

from vbackup import names
from vbackup.errors import StorageError
from vbackup.fields import Fields
from vbackup.layers import ChainState
from vbackup.model import Level

_Word = TypeVar("_Word", bound=Enum)


@dataclass(frozen=True)
class TrackedDisk:
    """A disk at a checkpoint."""

    dev: str
    level: Level  #: what the session gave of it: full, incremental or differential
    size_bytes: int
    bitmap: str | None  #: name of the bitmap that began to record then; None for a disk that can have none
    node_name: str  #: of the layer that has the bitmap
    chain: ChainState | None = None  #: the disk's layers at that moment

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "dev": self.dev,
            "level": self.level.value,
            "size_bytes": self.size_bytes,
            "bitmap": self.bitmap,
            "node_name": self.node_name,
            "chain": None if self.chain is None else self.chain.document(),
        }

    @classmethod
    def read(cls, fields: Fields) -> TrackedDisk:
        """Return the disk that ``document`` describes. Raises StorageError."""
        dev, bitmap = fields.text("dev"), fields.optional_text("bitmap")
        if not names.DEV.fullmatch(dev) or (bitmap is not None and names.parse_bitmap(bitmap) is None):
            raise StorageError(f"{dev!r} with bitmap {bitmap!r} is not a disk that vbackup writes down.")
        return cls(
            dev=dev,
            level=word(Level, fields.text("level")),
            size_bytes=fields.integer("size_bytes"),
            bitmap=bitmap,
            node_name=fields.text("node_name"),
            chain=ChainState.read(fields.object("chain")) if "chain" in fields else None,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A moment from which a tracker's next session can start."""

    id: str
    sequence: int  #: order in which they were committed; clocks may step back
    time: datetime
    session: str  #: id of the session that made it
    level: Level
    disks: Mapping[str, TrackedDisk]  #: by dev

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "id": self.id,
            "sequence": self.sequence,
            "time": iso(self.time),
            "session": self.session,
            "level": self.level.value,
            "disks": [disk.document() for disk in self.disks.values()],
        }

    @classmethod
    def read(cls, fields: Fields) -> Checkpoint:
        """Return the checkpoint that ``document`` describes. Raises StorageError."""
        checkpoint = fields.text("id")
        if not names.BACKUP_ID.fullmatch(checkpoint):
            raise StorageError(f"{checkpoint!r} is not a checkpoint of vbackup.")
        disks = [TrackedDisk.read(disk) for disk in fields.objects("disks")]
        return cls(
            id=checkpoint,
            sequence=fields.integer("sequence"),
            time=moment(fields.text("time")),
            session=session_id(fields.text("session")),
            level=word(Level, fields.text("level")),
            disks={disk.dev: disk for disk in disks},
        )


def iso(time: datetime) -> str:
    """Return the time in UTC in the form 2026-11-23T10:15:00.250000Z (RFC 3339)."""
    return time.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def moment(text: str) -> datetime:
    """Return the time that ``iso`` wrote. Raises StorageError."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError) as err:
        raise StorageError(f"{text[:50]!r} is not a time.") from err


def session_id(text: str) -> str:
    """Return the id of a session, checked: it becomes the name of a directory. Raises StorageError."""
    if not names.SESSION_ID.fullmatch(text):
        raise StorageError(f"{text[:50]!r} is not the id of a session.")
    return text


def word(kind: type[_Word], text: str) -> _Word:
    """Return the member of an enumeration that has this value. Raises StorageError."""
    try:
        return kind(text)
    except ValueError as err:
        known = ", ".join(str(one.value) for one in kind)
        raise StorageError(f"{text[:50]!r} is not one of {known}.") from err
