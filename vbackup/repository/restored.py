"""Record which images restores have made with a bitmap of the restored checkpoint (restored.json of a domain).

An image says by its bitmap what has changed since, and nothing proves which backup it was like when the bitmap was
empty, but this record: the bitmap's name has a token that is written here only. The next backup of the disk then starts
from that backup (vbackup.repository.history). A file that cannot be read counts as none, which costs a full.
vbackup-repository(5) describes the members.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import read_regular, replace_text, storage_errors
from vbackup.layers import ChainState
from vbackup.repository.history import RestoredDisk

NAME = "restored.json"
SCHEMA = "vbackup.restored/1"
#: Number of records kept of a disk: a restored image may come into use after many others were made.
MAX_OF_DISK = 64
_MAX_BYTES = 16 * 1024 * 1024


def read(directory: Path) -> list[RestoredDisk]:
    """Return what is recorded in a domain's directory, the oldest first."""
    try:
        fields = Fields(parse_json(read_regular(directory / NAME, max_bytes=_MAX_BYTES).decode()), NAME, ChainError)
        if fields.text("schema") != SCHEMA:
            return []
        return [_parse(each) for each in fields.objects("disks")]
    except (OSError, ValueError, RecursionError, ChainError):
        return []


def add(directory: Path, disks: Sequence[RestoredDisk]) -> None:
    """Record these too. Raises StorageError, NoSpaceError."""
    with storage_errors(f"write {directory / NAME}"):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # two restores may end at the same time
            everything = [*read(directory), *disks]
            kept = [one for place, one in enumerate(everything) if _newer(everything, place) < MAX_OF_DISK]
            document = {"schema": SCHEMA, "disks": [_document(one) for one in kept]}
            replace_text(directory / NAME, json.dumps(document, indent=2) + "\n")
        finally:
            os.close(fd)


def _newer(disks: Sequence[RestoredDisk], place: int) -> int:
    """Return how many records of the same disk follow the one at that place."""
    return sum(one.dev == disks[place].dev for one in disks[place + 1 :])


def _document(one: RestoredDisk) -> dict[str, Any]:
    return {
        "dev": one.dev,
        "backup": one.backup,
        "bitmap": one.bitmap,
        "size_bytes": one.size_bytes,
        "after": one.after,
        "after_id": one.after_id,
        "in_place": one.is_in_place,
        "chain": one.chain.document(),
    }


def _parse(fields: Fields) -> RestoredDisk:
    one = RestoredDisk(
        dev=fields.text("dev"),
        backup=fields.text("backup"),
        bitmap=fields.text("bitmap"),
        size_bytes=fields.integer("size_bytes"),
        after=fields.integer("after"),
        after_id=fields.optional_text("after_id"),
        is_in_place="in_place" in fields and fields.boolean("in_place"),
        chain=ChainState.read(fields.object("chain")),
    )
    parsed = names.parse_bitmap(one.bitmap)
    if parsed is None or (parsed.checkpoint, parsed.dev) != (one.backup, one.dev):
        raise ChainError(f"{NAME} names the bitmap {one.bitmap[:200]!r}, which does not belong to {one.backup[:50]!r}.")
    return one
