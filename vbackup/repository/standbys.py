"""Record which standbys a domain has (standbys.json in its directory): at which libvirt, and where their images are.

What a standby is like, its definition in libvirt says (vbackup.domain.standby_xml). This record finds it, and says
which files of its host are its own before libvirt knows it. vbackup-repository(5) describes the members.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.errors import ChainError, StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import read_regular, replace_text, storage_errors
from vbackup.repository import manifest

NAME = "standbys.json"
SCHEMA = "vbackup.standby/1"
_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Record:
    """A standby."""

    uri: str  #: of the libvirt that has it, as it was given
    directory: Path  #: of its images, on its host
    backup: str | None = None  #: id of the newest backup that was applied; None: none was yet
    applied: datetime | None = None  #: when that was
    failback: str | None = None  #: id of the backup that the original is to get, of a failback that has not ended
    taken_over: datetime | None = None  #: when it took over; None: it has not, or is a standby again
    failed_back: str | None = None  #: id of the backup of the standby that the original got by the last failback


def read(directory: Path) -> list[Record]:
    """Return the standbys of a domain, in the order of their making.

    Raises ChainError if the record is damaged, StorageError if a newer vbackup wrote it, or it cannot be read.
    """
    path = directory / NAME
    with storage_errors(f"read {path}"):
        try:
            fields = Fields(parse_json(read_regular(path, max_bytes=_MAX_BYTES).decode()), f"{path}", ChainError)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (ValueError, RecursionError) as err:
            raise ChainError(
                f"{path} is damaged ({err}), so where the standbys of the domain are is not known. Remove it: 'vbackup"
                " replicate' makes it again."
            ) from err
    if fields.text("schema") != SCHEMA:
        raise StorageError(
            f"{path} has format {fields.text('schema')[:50]}, but this vbackup only knows {SCHEMA}; use a newer"
            " vbackup."
        )
    return [_parse(each) for each in fields.objects("standbys")]


def find(directory: Path, uri: str) -> Record | None:
    """Return the standby of a domain at that libvirt, None if there is none. Raises what ``read`` raises."""
    return next((one for one in read(directory) if one.uri == uri), None)


def failed_back(directory: Path) -> frozenset[str]:
    """Return the ids of the backups of standbys that the original got by a failback; none if that cannot be read."""
    try:
        return frozenset(one.failed_back for one in read(directory) if one.failed_back is not None)
    except (ChainError, StorageError):
        return frozenset()


def put(directory: Path, record: Record) -> None:
    """Record a standby, in the place of what is recorded for that libvirt. Raises StorageError, ChainError.

    The caller has the domain's lock in the repository.
    """
    known = read(directory)
    places = [number for number, one in enumerate(known) if one.uri == record.uri]
    if places:
        known[places[0]] = record
    else:
        known.append(record)
    _write(directory, known)


def remove(directory: Path, uri: str) -> None:
    """Forget the standby at that libvirt. Raises StorageError, ChainError."""
    _write(directory, [one for one in read(directory) if one.uri != uri])


def _write(directory: Path, records: Sequence[Record]) -> None:
    document = {"schema": SCHEMA, "standbys": [_document(one) for one in records]}
    with storage_errors(f"write {directory / NAME}"):
        replace_text(directory / NAME, json.dumps(document, indent=2) + "\n")


def _document(one: Record) -> dict[str, Any]:
    return {
        "uri": one.uri,
        "directory": str(one.directory),
        "backup": one.backup,
        "applied": None if one.applied is None else manifest.iso(one.applied),
        "failback": one.failback,
        "taken_over": None if one.taken_over is None else manifest.iso(one.taken_over),
        "failed_back": one.failed_back,
    }


def _parse(fields: Fields) -> Record:
    backup, failback, failed_back = map(fields.optional_text, ("backup", "failback", "failed_back"))
    for one in (backup, failback, failed_back):
        if one is not None and not names.BACKUP_ID.fullmatch(one):
            raise ChainError(f"{NAME} names the backup {one[:50]!r}, which is not an id of a backup.")
    uri, directory = fields.text("uri"), Path(fields.text("directory"))
    times = {name: _time(fields, name) for name in ("applied", "taken_over")}
    return Record(uri, directory, backup, times["applied"], failback, times["taken_over"], failed_back)


def _time(fields: Fields, name: str) -> datetime | None:
    text = fields.optional_text(name)
    return None if text is None else manifest.time(text, f"{NAME}: {name}")
