"""Tell the names in a repository, or in a target of copies in a directory, to a shell that completes a word.

Names of directories, and of each domain one small file: nothing is checked, and what cannot be read is passed over.
Everything else reads a repository with vbackup.repository.catalogue, whose imports take longer than this may.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.files import read_regular

#: Of a file that is worth reading here. A manifest has some kilobytes for each disk.
_MAX_BYTES = 4 * 1024 * 1024


def domains(repository: Path) -> list[str]:
    """Return the names that the domains had last, sorted; the UUID of one without a name."""
    return sorted({_names(repository, uuid)[-1] for uuid in _uuids(repository)})


def backups(repository: Path, domain: str | None = None) -> list[str]:
    """Return the ids of the committed backups, the newest first: of a domain, by a name or its UUID, or of all."""
    found = {one for uuid in _bearers(repository, domain) for one in _ids(repository, uuid)}
    return sorted(found, reverse=True)


def disks(repository: Path, domain: str, backup: str | None = None) -> list[str]:
    """Return the names of the disks that a backup of the domain has, by default the newest."""
    found: set[str] = set()
    for uuid in _bearers(repository, domain):
        chosen = _newest(repository, uuid) if backup is None else backup
        entries = _read(repository / uuid / chosen / "manifest.json").get("disks")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("dev"), str):
                found.add(entry["dev"])
    return sorted(found)


def hosts(repository: Path, domain: str | None = None) -> list[str]:
    """Return the names of the hosts that a domain, or any, has been on."""
    found: set[str] = set()
    for uuid in _bearers(repository, domain):
        entries = _read(repository / uuid / "domain.json").get("hosts")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                found.add(entry["name"])
    return sorted(found)


def _bearers(repository: Path, domain: str | None) -> list[str]:
    uuids = _uuids(repository)
    if domain is None:
        return uuids
    if domain.lower() in uuids:
        return [domain.lower()]
    return [uuid for uuid in uuids if domain in _names(repository, uuid)]


def _uuids(repository: Path) -> list[str]:
    return sorted(_directories(repository, names.UUID.fullmatch))


def _ids(repository: Path, uuid: str) -> Iterator[str]:
    return _directories(repository / uuid, names.BACKUP_ID.fullmatch)


def _newest(repository: Path, uuid: str) -> str:
    return max(_ids(repository, uuid), default="")


def _directories(path: Path, is_wanted: Callable[[str], object]) -> Iterator[str]:
    try:
        with os.scandir(path) as entries:
            found = [entry.name for entry in entries if is_wanted(entry.name) and entry.is_dir(follow_symlinks=False)]
    except (OSError, ValueError):  # of a NUL in the path
        found = []
    yield from found


def _names(repository: Path, uuid: str) -> list[str]:
    """Return the names that the domain has had; a target of copies knows it from its newest manifest only."""
    recorded = _read(repository / uuid / "domain.json").get("names")
    found = [name for name in recorded if isinstance(name, str)] if isinstance(recorded, list) else []
    if not found:
        domain = _read(repository / uuid / _newest(repository, uuid) / "manifest.json").get("domain")
        name = domain.get("name") if isinstance(domain, dict) else None
        found = [name] if isinstance(name, str) else []
    return found or [uuid]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_regular(path, max_bytes=_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
