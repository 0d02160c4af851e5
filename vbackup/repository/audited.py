"""Keep the result of the last audit of each disk in the domain's directory (audit.json).

If an audit has found that tracking missed changes, no backup may start from the checkpoints that the disk had then, not
even if their bitmaps could not be removed: vbackup.repository.history knows them from here. A later audit that finds
nothing changes nothing of that, so it keeps those of them that still have a backup. A file that cannot be read may
have spoken of any of them, so none is trusted until a full of each disk; the backup that makes it writes a new file.
vbackup-repository(5) describes the members.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import read_regular, replace_text, storage_errors
from vbackup.model import Backup
from vbackup.repository import manifest

NAME = "audit.json"
SCHEMA = "vbackup.audited/1"
_UNKNOWN = "lost"
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
    is_lost: bool = False  #: what the audit found is not known, because the file was damaged at that time


def read(directory: Path) -> dict[str, Audited]:
    """Return what is kept in a domain's directory, by dev. Raises ChainError if the file is damaged."""
    path = directory / NAME
    try:
        fields = Fields(parse_json(read_regular(path, max_bytes=_MAX_BYTES).decode()), NAME, ChainError)
        if fields.text("schema") != SCHEMA:
            raise ChainError(f"its schema is {fields.text('schema')[:50]!r}.")
        return {one.dev: one for one in map(_parse, fields.objects("disks"))}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError, ChainError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err).rstrip(".")
        raise ChainError(f"{path} cannot be read: {reason}.") from err


def flaw(directory: Path) -> str | None:
    """Return why what is kept in a domain's directory cannot be read, as a sentence; None if it can."""
    try:
        read(directory)
    except ChainError as err:
        return str(err)
    return None


def add(directory: Path, results: Sequence[Audited]) -> None:
    """Keep these in place of earlier ones of the same disks.

    Raises StorageError, NoSpaceError; ChainError if the file is damaged.
    """
    text = _text({**read(directory), **{one.dev: one for one in results}}.values())
    with storage_errors(f"write {directory / NAME}"):
        replace_text(directory / NAME, text)


def renewed(backups: Sequence[Backup], *, now: datetime) -> str:
    """Return the content of a new file in place of a damaged one: no backup may start from one of these."""
    return _text(_lost(backups, now=now))


def _lost(backups: Sequence[Backup], *, now: datetime) -> list[Audited]:
    ids: dict[str, list[str]] = {}
    for backup in backups:
        for image in backup.disks:
            ids.setdefault(image.dev, []).append(backup.id)
    return [
        Audited(dev, now, of[-1], False, clean_bytes=0, read_bytes=0, wrong_bytes=0, distrusted=of, is_lost=True)
        for dev, of in ids.items()
    ]


def distrusted(directory: Path, backups: Sequence[Backup]) -> Mapping[tuple[str, str], str]:
    """Return why no backup may start from a checkpoint, by (backup id, dev). ``backups``: all of the domain."""
    try:
        results: Iterable[Audited] = read(directory).values()
    except ChainError:
        results = _lost(backups, now=datetime.now(timezone.utc))
    return {(backup_id, one.dev): _reason(one) for one in results for backup_id in one.distrusted}


def _reason(one: Audited) -> str:
    if one.is_lost:
        return f"{NAME} is damaged, or was, so an audit may have found changes that its bitmap had missed"
    return (
        f"an audit {'before' if one.is_good else 'at'} {one.time:%Y-%m-%d %H:%M:%S}Z found changes that its bitmap had"
        " missed"
    )


def _text(results: Iterable[Audited]) -> str:
    return json.dumps({"schema": SCHEMA, "disks": [_document(one) for one in results]}, indent=2) + "\n"


def _document(one: Audited) -> dict[str, Any]:
    return {
        "dev": one.dev,
        "time": manifest.iso(one.time),
        "backup": one.backup,
        "verdict": _UNKNOWN if one.is_lost else "good" if one.is_good else "missed",
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
        is_lost=fields.text("verdict") == _UNKNOWN,
        clean_bytes=fields.integer("clean_bytes"),
        read_bytes=fields.integer("read_bytes"),
        wrong_bytes=fields.integer("wrong_bytes"),
        distrusted=fields.strings("distrusted"),
    )
