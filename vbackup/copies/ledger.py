"""The manifests of a target that were stored or read before, kept on this machine, so that none is fetched twice.

    DIR/<domain uuid>/<backup id>.json      size and time of the object, and the manifest's text
    DIR/place.json                          where the target was when backups were last copied there

A manifest at a target never changes, but a point can be removed there and copied again by another machine: an entry
counts only while the object that is listed has the size and the time that were noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup import names
from vbackup.copies.target import MARKER, Target
from vbackup.errors import StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import read_regular, replace_text, storage_errors
from vbackup.repository import manifest
from vbackup.stores.store import StoredObject

_SUFFIX = ".json"
_PLACE = "place.json"
_MAX_SMALL_BYTES = 64 * 1024
#: A manifest, escaped as a JSON string.
_MAX_BYTES = 2 * manifest.MAX_SIZE_BYTES


class Ledger:
    """What is known of a target. The directory is made when there is something to keep."""

    def __init__(self, directory: Path, *, other: Ledger | None = None) -> None:
        """``other``: where else to look: the ledger of the repository from which points are copied."""
        self.directory = directory
        self._other = other

    def directory_of(self, uuid: str) -> Path:
        """Return the directory of a domain, which now exists. Raises StorageError."""
        path = self.directory / uuid
        with storage_errors(f"write to {self.directory}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def note_place(self, name: str) -> None:
        """Keep where the target is, as users call it. Raises StorageError."""
        path = self.directory / _PLACE
        if _text_in(path, "name") != name:
            with storage_errors(f"write {path}"):
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_text(path, json.dumps({"name": name}, ensure_ascii=False) + "\n")

    def ids(self, uuid: str) -> frozenset[str]:
        """Return the ids of a domain's points at the target, as far as this machine knows; nothing of them is read."""
        try:
            names_there = os.listdir(self.directory / uuid)  # noqa: PTH208 - one quick call for each domain
        except OSError:
            return frozenset()
        stems = (name[: -len(_SUFFIX)] for name in names_there if name.endswith(_SUFFIX))
        return frozenset(stem for stem in stems if names.BACKUP_ID.fullmatch(stem))

    def get(self, uuid: str, backup_id: str, listed: StoredObject) -> str | None:
        """Return the text of a manifest that is listed like this; None if it has to be read from the target."""
        found = self._get(uuid, backup_id, listed)
        return self._other.get(uuid, backup_id, listed) if found is None and self._other is not None else found

    def _get(self, uuid: str, backup_id: str, listed: StoredObject) -> str | None:
        path = self.directory / uuid / (backup_id + _SUFFIX)
        try:
            fields = Fields(parse_json(read_regular(path, max_bytes=_MAX_BYTES).decode()), str(path), StorageError)
            text = fields.text("manifest")
            is_noted = "size_bytes" in fields
            if is_noted and (fields.integer("size_bytes"), fields.text("modified")) != _facts(listed):
                return None
        except (OSError, ValueError, RecursionError, StorageError):
            return None
        if not is_noted:  # it was stored by this machine, and is listed for the first time
            if len(text.encode()) != listed.size_bytes:
                return None
            self.put(uuid, backup_id, text, listed)
        return text

    def put(self, uuid: str, backup_id: str, text: str, listed: StoredObject | None = None) -> None:
        """Keep a manifest that was read, or, without ``listed``, has just been stored. Raises StorageError."""
        size_bytes, modified = (None, None) if listed is None else _facts(listed)
        entry = {"size_bytes": size_bytes, "modified": modified, "manifest": text}
        path = self.directory_of(uuid) / (backup_id + _SUFFIX)
        with storage_errors(f"write {path}"):
            replace_text(path, json.dumps(entry, ensure_ascii=False) + "\n")

    def drop(self, uuid: str, backup_id: str) -> None:
        """Forget a point. Raises StorageError."""
        path = self.directory / uuid / (backup_id + _SUFFIX)
        with storage_errors(f"remove {path}"):
            path.unlink(missing_ok=True)

    def keep_only(self, uuid: str, ids: Collection[str]) -> None:
        """Forget the points of a domain that are not at the target any more."""
        with suppress(OSError):
            for path in (self.directory / uuid).glob(f"*{_SUFFIX}"):
                if names.BACKUP_ID.fullmatch(path.stem) and path.stem not in ids:
                    path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Known:
    """A target, and what this machine knows of it."""

    target: Target
    ledger: Ledger


def of_targets(directory: Path, urls: Mapping[str, str]) -> dict[str, Ledger]:
    """Return the ledgers of the targets of these addresses, by their names, as far as there are any.

    ``directory`` has all ledgers of a repository. No target is asked; only the marker of one in a directory here is
    read, if its place is not known yet.
    """
    try:
        found = [path for path in sorted(directory.iterdir()) if names.REPOSITORY_ID.fullmatch(path.name)]
    except OSError:
        return {}
    by_place = {place: path for path in found if (place := _text_in(path / _PLACE, "name")) is not None}
    by_id = {path.name: path for path in found}
    ledgers = {}
    for name, url in urls.items():
        place = _place_of(url)
        path = by_place.get(url) or by_place.get(place) or by_id.get(_text_in(Path(place) / MARKER, "id") or "")
        if path is not None:
            ledgers[name] = Ledger(path)
    return ledgers


def _place_of(url: str) -> str:
    """Return the address as the store that it stands for is called."""
    path = url[len("file://") :] if url.startswith("file://") else url
    return url.rstrip("/") if "://" in path else os.path.realpath(path)


def _text_in(path: Path, member: str) -> str | None:
    """Return a text of a small JSON file; None if there is none, or it cannot be read."""
    try:
        text = read_regular(path, max_bytes=_MAX_SMALL_BYTES).decode()
        return Fields(parse_json(text), str(path), StorageError).text(member)
    except (OSError, ValueError, RecursionError, StorageError):
        return None


def _facts(listed: StoredObject) -> tuple[int, str]:
    return listed.size_bytes, listed.modified.isoformat()
