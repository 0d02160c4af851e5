"""A directory as a store: an object is a file, below directories that are named by the parts of its key.

An object is written to a file in .incoming and gets its name by a hard link, which never replaces a file. Where the
filesystem has no hard links (exFAT, some SMB servers), a rename that does not replace does the same, if it has that.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from vbackup import immutable
from vbackup.errors import StorageError
from vbackup.files import fsync, open_regular, storage_errors
from vbackup.repository import filesystem
from vbackup.stores.store import (
    MAX_DEPTH,
    PIECE_BYTES,
    Deletion,
    Source,
    StoredObject,
    refuse_key,
    refuse_prefix,
    wrong_size,
)

_INCOMING = ".incoming"
#: A file in .incoming that has not been written to for so long belongs to a process that is gone.
_ABANDONED_S = 24 * 3600
#: What link() says on a filesystem without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DirectoryStore:
    """A directory. One that does not exist has no objects."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_tidy = False

    @property
    def name(self) -> str:
        """As Store."""
        return os.fspath(self._path)

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        """As Store."""
        with storage_errors(f"write to {self._path}"):
            path = self._path_of(key)
            if os.path.lexists(path):
                return False
            incoming = self._path / _INCOMING
            incoming.mkdir(mode=0o700, exist_ok=True)
            self._refuse_link(incoming)  # old files in it are removed
            if not self._is_tidy:
                self._is_tidy = True
                _tidy(incoming)
            temporary = incoming / uuid.uuid4().hex
            try:
                _write(temporary, key, source, size_bytes)
                return self._give_name(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """As Store."""
        path = self._path_of(key)
        try:
            fd = open_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from None
        except OSError as err:
            raise StorageError(f"Cannot read {path}: {err.strerror or err}.") from err
        with storage_errors(f"read {path}"), os.fdopen(fd, "rb", buffering=0) as file:
            file.seek(offset)
            left = length
            while left is None or left > 0:
                piece = file.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    def size(self, key: str) -> int | None:
        """As Store."""
        path = self._path_of(key)
        with storage_errors(f"read {path}"):
            try:
                status = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As Store."""
        refuse_prefix(prefix)
        start = self._path_of(prefix[:-1]) if prefix else self._path
        with storage_errors(f"read {start}"):
            yield from _walk(start, prefix)

    def delete(self, key: str) -> Deletion:
        """As Store. Directories that become empty are removed."""
        path = self._path_of(key)
        with storage_errors(f"remove {path}"):
            try:
                if not immutable.release(path):
                    return Deletion.KEPT
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return Deletion.ABSENT
            except PermissionError:  # the append-only flag (chattr), or a directory of somebody else
                return Deletion.KEPT
            with suppress(OSError):
                # A manifest has to be gone for good before what it names is removed, also where the filesystem has no
                # journal that keeps the order.
                fsync(path.parent)
                for parent in path.parents:
                    if parent == self._path:
                        break
                    parent.rmdir()
        return Deletion.DELETED

    def lock_days(self) -> int | None:
        """As Store: a directory keeps nothing by itself, only what ``hold`` was called for."""
        return None

    def refuse_unholdable(self) -> None:
        """Raise StorageError unless objects can be made immutable here."""
        immutable.refuse_impossible(self._path)

    def hold(self, key: str, until: datetime) -> bool:
        """Make an object immutable until then (vbackup.immutable); return False if it was already, or is not there.

        Raises StorageError.
        """
        path = self._path_of(key)
        with storage_errors(f"make {path} immutable"):
            try:
                end = immutable.until(path)
                if end is not None and end >= until.replace(microsecond=0):
                    return False
                immutable.make(path, until)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def close(self) -> None:
        """As Store."""

    def _path_of(self, key: str) -> Path:
        refuse_key(key)
        path = self._path.joinpath(*key.split("/"))
        for parent in path.parents:
            if parent == self._path:
                break
            self._refuse_link(parent)
        return path

    def _refuse_link(self, directory: Path) -> None:
        if directory.is_symlink():
            raise StorageError(
                f"{directory} is a symbolic link, which could lead out of {self._path}; vbackup does not follow it."
            )

    def _make_directory(self, path: Path) -> None:
        """Make a directory and those above it, and put their names on the disk."""
        if path == self._path or path.is_dir():
            return
        self._make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        fsync(path.parent)

    def _give_name(self, temporary: Path, path: Path) -> bool:
        """Give a file its name unless that is taken; return True if it has it now."""
        while True:
            self._make_directory(path.parent)
            try:
                _name(temporary, path)
            except FileExistsError:
                return False
            except FileNotFoundError:  # a delete has just removed the directory, which had become empty
                if not temporary.exists():
                    raise
            else:
                fsync(path.parent)
                return True


def _name(temporary: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError if that is taken."""
    try:
        os.link(temporary, path)
    except OSError as err:
        if err.errno not in _NO_LINKS:
            raise
        filesystem.move(temporary, path)


def _write(path: Path, key: str, source: Source, size_bytes: int) -> None:
    done_bytes = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        while piece := source.read(PIECE_BYTES):
            done_bytes += len(piece)
            if done_bytes > size_bytes:
                break
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        if done_bytes != size_bytes:
            raise wrong_size(key, size_bytes, done_bytes)
        os.fsync(file.fileno())


def _walk(path: Path, prefix: str) -> Iterator[StoredObject]:
    """Yield what is below a directory, in the order of the keys: a directory sorts as its name with a slash."""
    if prefix.count("/") > MAX_DEPTH:
        return
    try:
        with os.scandir(path) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    directories = {entry.name for entry in found if entry.is_dir(follow_symlinks=False)}
    for entry in sorted(found, key=lambda each: each.name + "/" * (each.name in directories)):
        if entry.name in directories:
            yield from _walk(path / entry.name, f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                status = entry.stat(follow_symlinks=False)
                modified = datetime.fromtimestamp(status.st_mtime, tz=timezone.utc)
                yield StoredObject(prefix + entry.name, status.st_size, modified)


def _tidy(incoming: Path) -> None:
    """Remove what processes have left that were killed long ago."""
    with suppress(OSError):
        for path in incoming.iterdir():
            if path.stat().st_mtime < time.time() - _ABANDONED_S:
                path.unlink(missing_ok=True)
