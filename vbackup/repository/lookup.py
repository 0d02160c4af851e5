"""Find backups by their ids, in one domain or in all: whether their manifests can be read or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vbackup import names
from vbackup.errors import ChainError
from vbackup.files import is_directory
from vbackup.repository.repository import Repository


@dataclass(frozen=True)
class Found:
    """A committed backup, by the name of its directory."""

    uuid: str  #: of its domain
    id: str
    directory: Path


def find(repository: Repository, ids: Sequence[str], uuid: str | None) -> list[Found]:
    """Return the backups with these ids, each once; of the domain ``uuid``, or of whatever domain has one.

    Raises ChainError if there is none, or if several domains have one: ids are unique in a domain only, and backups of
    a group have the same.
    """
    uuids = repository.uuids() if uuid is None else [uuid]
    found: dict[tuple[str, str], Found] = {}
    for backup_id in ids:
        having = [one for one in uuids if _has(repository.directory(one, backup_id))]
        if not having:
            missing = [one for one in ids if not any(_has(repository.directory(bearer, one)) for bearer in uuids)]
            named = " or ".join(map(repr, missing))
            where = "of this domain" if uuid is not None else f"in {repository.path}"
            raise ChainError(
                f"No backup {named} {where}; 'vbackup list DOMAIN' lists the backups of a domain. Nothing was changed."
            )
        if len(having) > 1:
            bearers = ", ".join(f"{repository.name_of(one)} ({one})" for one in having)
            raise ChainError(
                f"Several domains have a backup {backup_id}: {bearers}. Give the domain, too. Nothing was changed."
            )
        found[having[0], backup_id] = Found(having[0], backup_id, repository.directory(having[0], backup_id))
    return list(found.values())


def _has(directory: Path) -> bool:
    return names.BACKUP_ID.fullmatch(directory.name) is not None and is_directory(directory)
