"""Keep the result of the last audit of each disk in the domain's directory (audit.json).

If an audit has found that tracking missed changes, no backup may start from the checkpoints that the disk had then, not
even if their bitmaps could not be removed: vbackup.repository.history knows them from here. A later audit that finds
nothing changes nothing of that, so it keeps those of them that still have a backup. A file that cannot be read
counts as none. vbackup-repository(5) describes the members.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import read_regular, replace_text, storage_errors
from vbackup.repository import manifest

NAME = "audit.json"
SCHEMA = "vbackup.audited/1"
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Audited:
    """The result of an audit of one disk."""

    dev: str
    time: datetime  #: the moment that was looked at
    backup: str  #: id of the newest backup of the disk then
    is_good: bool
    clean_bytes: int  #: of the data of that backup, how much had not changed since, as its bitmap said
    read_bytes: int  #: of that, how much was compared
    wrong_bytes: int
    distrusted: Collection[str] = ()  #: backups that none may start from, by this audit or an earlier one


def read(directory: Path) -> dict[str, Audited]:
    """Return what is kept in a domain's directory, by dev."""
    try:
        fields = Fields(parse_json(read_regular(directory / NAME, max_bytes=_MAX_BYTES).decode()), NAME, ChainError)
        if fields.text("schema") != SCHEMA:
            return {}
        return {one.dev: one for one in map(_parse, fields.objects("disks"))}
    except (OSError, ValueError, RecursionError, ChainError):
        return {}


def add(directory: Path, results: Sequence[Audited]) -> None:
    """Keep these in place of earlier ones of the same disks. Raises StorageError, NoSpaceError."""
    kept = {**read(directory), **{one.dev: one for one in results}}
    document = {"schema": SCHEMA, "disks": [_document(one) for one in kept.values()]}
    with storage_errors(f"write {directory / NAME}"):
        replace_text(directory / NAME, json.dumps(document, indent=2) + "\n")


def distrusted(directory: Path) -> Mapping[tuple[str, str], str]:
    """Return why no backup may start from a checkpoint, by (backup id, dev)."""
    return {
        (backup_id, one.dev): (
            f"an audit {'before' if one.is_good else 'at'} {one.time:%Y-%m-%d %H:%M:%S}Z found changes that its bitmap"
            " had missed"
        )
        for one in read(directory).values()
        for backup_id in one.distrusted
    }


def _document(one: Audited) -> dict[str, Any]:
    return {
        "dev": one.dev,
        "time": manifest.iso(one.time),
        "backup": one.backup,
        "verdict": "good" if one.is_good else "missed",
        "clean_bytes": one.clean_bytes,
        "read_bytes": one.read_bytes,
        "wrong_bytes": one.wrong_bytes,
        "distrusted": sorted(one.distrusted),
    }


def _parse(fields: Fields) -> Audited:
    return Audited(
        dev=fields.text("dev"),
        time=manifest.time(fields.text("time"), NAME),
        backup=fields.text("backup"),
        is_good=fields.text("verdict") == "good",
        clean_bytes=fields.integer("clean_bytes"),
        read_bytes=fields.integer("read_bytes"),
        wrong_bytes=fields.integer("wrong_bytes"),
        distrusted=fields.strings("distrusted"),
    )
