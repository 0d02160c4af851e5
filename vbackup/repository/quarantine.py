"""Put away what cannot be used, without removing it: REPO/quarantine/DOMAIN UUID/..., with the names that it had.

A backup in the quarantine is seen by no command. Its directory can be moved back, and as long as all backups of a chain
are in one place, QEMU can read their images there. A file that was replaced is below REPO/quarantine/replaced.
"""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

from vbackup import names
from vbackup.files import fsync, is_directory, storage_errors
from vbackup.repository.repository import QUARANTINE, Repository

NAME, _REPLACED = QUARANTINE, "replaced"
#: Errors of a filesystem where a file has one name only.
_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL))


def uuids(repository: Repository) -> list[str]:
    """Return the UUIDs of the domains that have backups there. Raises StorageError."""
    found = [path.name for path in _directories(repository.path / NAME) if names.UUID.fullmatch(path.name)]
    return [uuid for uuid in found if backups(repository, uuid)]


def backups(repository: Repository, uuid: str) -> list[str]:
    """Return the ids of the backups of a domain that are there, oldest first. Raises StorageError."""
    store = repository.path / NAME / uuid
    return [path.name for path in _directories(store) if names.BACKUP_ID.fullmatch(path.name)]


def _directories(store: Path) -> list[Path]:
    with storage_errors(f"read {store}"):
        return sorted(path for path in store.iterdir() if is_directory(path)) if is_directory(store) else []


def put(repository: Repository, path: Path) -> Path:
    """Move a file or directory of the repository there, and return its new path. Raises StorageError."""
    target = _free(repository, path, repository.path / NAME)
    with storage_errors(f"move {path} to {target}"):
        path.rename(target)
        fsync(target.parent)
        fsync(path.parent)
    return target


def replace(repository: Repository, path: Path, new: Path) -> Path | None:
    """Give the file ``new`` the name ``path`` in one step, and keep what had it; return where.

    Where a file cannot have two names, there is a moment without the name. Raises StorageError.
    """
    kept = None
    with storage_errors(f"replace {path}"):
        if os.path.lexists(path):
            kept = _free(repository, path, repository.path / NAME / _REPLACED)
            try:
                os.link(path, kept, follow_symlinks=False)
            except OSError as err:
                if err.errno not in _NO_LINKS:
                    raise
                path.rename(kept)
            fsync(kept.parent)
        new.replace(path)
        fsync(path.parent)
    return kept


def _free(repository: Repository, path: Path, store: Path) -> Path:
    """Return a path in the store that is free; the directories above it are made."""
    wanted = store / path.relative_to(repository.path)
    with storage_errors(f"make {wanted.parent}"):
        for directory in reversed([wanted.parent, *wanted.parent.parents]):
            if repository.path in directory.parents:
                directory.mkdir(mode=0o700, exist_ok=True)
    candidates = itertools.chain([wanted], (wanted.with_name(f"{wanted.name}.{n}") for n in itertools.count(1)))
    return next(candidate for candidate in candidates if not os.path.lexists(candidate))
