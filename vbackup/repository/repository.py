"""The directory that holds the backups: find them, lock a domain, stage and commit a new one.

    REPO/vbackup.json                  format version, repository id
    REPO/<domain uuid>/domain.json     names the domain has had
    REPO/<domain uuid>/lock            held while a backup of the domain runs
    REPO/<domain uuid>/<backup id>/    manifest.json  domain.xml  nvram  vda.qcow2 ...
    REPO/<domain uuid>/<backup id>.partial/    one that is being made, or that was cut off; with a journal

A backup is there once its directory has its name: that rename is the commit. The format is described
in vbackup-repository(5), manifests are read and written by vbackup.repository.manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vbackup import names
from vbackup.errors import DomainNotFoundError, StorageError
from vbackup.fields import Fields, parse_json
from vbackup.files import (
    MAX_FSYNCS,
    digest_of,
    fsync,
    is_directory,
    replace_text,
    storage_errors,
)
from vbackup.model import Backup
from vbackup.names import Naming
from vbackup.repository import catalogue, lock, manifest
from vbackup.repository.catalogue import Catalogue, read_text
from vbackup.repository.journal import JOURNAL
from vbackup.repository.lock import LockWait

VERSION = 1
MARKER = "vbackup.json"
PARTIAL = ".partial"


class Repository:
    """A repository that was found to be one."""

    def __init__(self, path: Path, repository_id: str) -> None:
        self.path = path
        self.id = repository_id
        self.naming = Naming(repository_id)

    @classmethod
    def create(cls, path: Path) -> Repository:
        """Make a repository of a directory that is empty or not there yet. Raises StorageError."""
        with storage_errors(f"make a repository in {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (path / MARKER).exists():
                raise StorageError(f"{path} is a vbackup repository already; nothing was changed.")
            if any(path.iterdir()):
                raise StorageError(f"{path} is not empty; give a new or an empty directory.")
            path.chmod(0o700)
            repository_id = names.new_repository_id()
            marker = {"schema": "vbackup.repository/1", "version": VERSION, "id": repository_id}
            replace_text(path / MARKER, json.dumps(marker, indent=2) + "\n")
        return cls(path.resolve(), repository_id)

    @classmethod
    def open(cls, path: Path) -> Repository:
        """Open an existing one. Raises StorageError where it is none, or of a newer format."""
        with storage_errors(f"read {path / MARKER}"):
            try:
                fields = Fields(parse_json(read_text(path / MARKER)), os.fspath(path / MARKER), StorageError)
            except (FileNotFoundError, NotADirectoryError):
                raise StorageError(
                    f"{path} is not a vbackup repository; is the disk mounted? 'vbackup init' makes a new one."
                ) from None
            except (ValueError, RecursionError) as err:
                raise StorageError(
                    f"{path / MARKER} is damaged ({err}); restore it from a copy of the repository."
                ) from err
        version = fields.integer("version")
        if version > VERSION:
            raise StorageError(
                f"{path} has repository format {version}, this vbackup knows {VERSION}; use a newer one."
            )
        repository_id = fields.text("id")
        if not names.REPOSITORY_ID.fullmatch(repository_id):
            raise StorageError(f"{path / MARKER} has the id {repository_id[:50]!r}, which vbackup never gives.")
        return cls(path.resolve(), repository_id)

    # reading

    def uuids(self) -> list[str]:
        """Of the domains that have backups."""
        with storage_errors(f"read {self.path}"):
            return sorted(
                entry.name for entry in self.path.iterdir() if names.UUID.fullmatch(entry.name) and is_directory(entry)
            )

    def find(self, domain: str) -> str:
        """The UUID of the domain of that UUID or name. Raises DomainNotFoundError."""
        uuids = self.uuids()
        if domain.lower() in uuids:
            return domain.lower()
        found = [uuid for uuid in uuids if domain in catalogue.domain_names(self.path / uuid)]
        current = [uuid for uuid in found if catalogue.domain_names(self.path / uuid)[-1] == domain] or found
        if len(current) > 1:
            raise DomainNotFoundError(
                domain,
                f"that is only one in {self.path}",
                f"several domains have had that name; give the UUID: {', '.join(current)}",
            )
        if not current:
            raise DomainNotFoundError(domain, f"in {self.path}", "'vbackup list' shows those there are")
        return current[0]

    def catalogue(self, uuid: str) -> Catalogue:
        """The domain's backups (vbackup.repository.catalogue)."""
        return catalogue.read(self.path / uuid, uuid)

    def directory(self, uuid: str, backup_id: str) -> Path:
        """Where that backup is."""
        return self.path / uuid / backup_id

    # writing

    @contextmanager
    def lock(self, uuid: str, *, wait: LockWait | None = None) -> Iterator[None]:
        """Hold the domain: no other vbackup writes to it.

        Raises BusyError if another one does, at once or when ``wait`` is over, and InterruptedBySignalError
        where a signal ends the wait. A lock ends with its process, however that ends.
        """
        directory = self.path / uuid
        with storage_errors(f"write to {self.path}"):
            fd = lock.take(directory, uuid) if wait is None else lock.wait_for(directory, uuid, wait)
        try:
            yield
        finally:
            # A first backup that failed leaves nothing; the lock is ours until the descriptor is closed.
            with suppress(OSError):
                if not any(entry.is_dir() for entry in directory.iterdir()):
                    _remove_tree(directory)
            os.close(fd)

    def taken_ids(self, uuid: str) -> frozenset[str]:
        """Ids that a new backup cannot have: of all backups that are there, readable or not."""
        with storage_errors(f"read {self.path / uuid}"):
            return frozenset(entry.name for entry in (self.path / uuid).iterdir())

    def unfinished(self, uuid: str) -> list[str]:
        """The ids of backups that are being made or were cut off."""
        try:
            entries = sorted(entry.name for entry in (self.path / uuid).iterdir() if entry.name.endswith(PARTIAL))
        except FileNotFoundError:
            return []
        return [name[: -len(PARTIAL)] for name in entries]

    def stage_path(self, uuid: str, backup_id: str) -> Path:
        """Where that backup is while it is being made."""
        return self.path / uuid / (backup_id + PARTIAL)

    @contextmanager
    def stage(self, uuid: str, backup_id: str, *, existing: bool = False) -> Iterator[Stage]:
        """A directory for a new backup, or an ``existing`` one that a dead run left; the lock must be held.

        It is removed when the block is left without a commit. Raises StorageError, NoSpaceError.
        """
        stage = Stage(self.stage_path(uuid, backup_id), self.directory(uuid, backup_id))
        if not existing:
            with storage_errors(f"write to {self.path}"):
                stage.path.mkdir(mode=0o700)
        try:
            yield stage
        finally:
            if not stage.committed:
                _remove(stage.path)

    def remember_name(self, uuid: str, name: str) -> None:
        """Note the name the domain has now."""
        known = [other for other in catalogue.domain_names(self.path / uuid) if other not in (name, uuid)]
        with storage_errors(f"write to {self.path}"):
            replace_text(
                self.path / uuid / "domain.json", json.dumps({"names": [*known, name]}, ensure_ascii=False) + "\n"
            )


class Stage:
    """A backup that is being made."""

    def __init__(self, path: Path, final: Path) -> None:
        self.path = path
        self._final = final
        self.committed = False

    def write(self, name: str, data: bytes) -> str:
        """Write a further file and return its digest."""
        with storage_errors(f"write {self.path / name}"):
            fd = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        return digest_of(data)

    def commit(self, backup: Backup, *, ready: Callable[[], None] = lambda: None) -> None:
        """Write the manifest, put everything on the disk, and give the backup its name.

        ``ready`` is called when all but the name is on the disk, and may raise: then it is no backup.
        The journal goes last: until then the backup can be finished by whoever finds it.
        """
        with storage_errors(f"write to {self.path}"):
            (self.path / "manifest.json").unlink(missing_ok=True)  # of a run that was killed in here
        self.write("manifest.json", manifest.dump(backup).encode())
        with storage_errors(f"write to {self._final.parent}"):
            from concurrent.futures import ThreadPoolExecutor  # which reading a repository does without

            with ThreadPoolExecutor(max_workers=MAX_FSYNCS) as pool:
                for _ in pool.map(fsync, self.path.iterdir()):
                    pass
            fsync(self.path)
        ready()
        with storage_errors(f"write to {self._final.parent}"):
            self.path.rename(self._final)
            self.committed = True
            fsync(self._final.parent)
            (self._final / JOURNAL).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a stage, or what somebody has put in its place. What cannot be removed stays, and costs room."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        _remove_tree(path, ignore_errors=True)


def _remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    import shutil  # which a backup that goes well does without: all kinds of compression come with it

    shutil.rmtree(path, ignore_errors=ignore_errors)
