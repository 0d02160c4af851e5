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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from vbackup import immutable
from vbackup.errors import StorageError
from vbackup.files import open_regular, storage_errors
from vbackup.repository import filesystem
from vbackup.stores.beneath import Beneath, exists, listable, named, sync
from vbackup.stores.store import (
    MAX_DEPTH,
    PIECE_BYTES,
    Deletion,
    Seen,
    Source,
    StoredObject,
    refuse_key,
    refuse_prefix,
    refuse_replaced,
    wrong_size,
)

_INCOMING = ".incoming"
#: A file in .incoming that has not been written to for so long belongs to a process that is gone.
_ABANDONED_S = 24 * 3600
#: What link() says on a filesystem without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DirectoryStore:
    """A directory. One that does not exist has no objects.

    Others may write in it meanwhile: everything is done in directories that are open (vbackup.stores.beneath), so that
    no symbolic link leads out of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beneath = Beneath(path)
        self._is_tidy = False

    @property
    def name(self) -> str:
        """As Store."""
        return os.fspath(self._path)

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        """As Store."""
        parents, name = _parts(key)
        with storage_errors(f"write to {self._path}"), named(self._path / key):
            if self._exists(parents, name):
                return False
            with self._beneath.opened((_INCOMING,), make=True) as incoming:
                if not self._is_tidy:
                    self._is_tidy = True
                    _tidy(incoming)
                temporary = uuid.uuid4().hex
                try:
                    _write(temporary, incoming, key, source, size_bytes)
                    return self._give_name(temporary, incoming, parents, name)
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(temporary, dir_fd=incoming)

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        """As Store."""
        parents, name = _parts(key)
        path = self._path / key
        try:
            with named(path), self._beneath.opened(parents) as directory:
                fd = open_regular(name, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from None
        except OSError as err:
            raise StorageError(f"Cannot read {path}: {err.strerror or err}.") from err
        with storage_errors(f"read {path}"), os.fdopen(fd, "rb", buffering=0) as file:
            refuse_replaced(self.name, key, mark, _mark(os.fstat(fd)))
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
        found = self.look(key)
        return None if found is None else found.size_bytes

    def look(self, key: str) -> Seen | None:
        """As Store."""
        parents, name = _parts(key)
        path = self._path / key
        with storage_errors(f"read {path}"), named(path):
            try:
                with self._beneath.opened(parents) as directory:
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Seen(status.st_size, _mark(status)) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As Store."""
        refuse_prefix(prefix)
        start = self._path / prefix
        with storage_errors(f"read {start}"), named(start):
            try:
                with self._beneath.opened(prefix[:-1].split("/") if prefix else ()) as directory:
                    fd = listable(directory)
            except (FileNotFoundError, NotADirectoryError):
                return
            yield from _walk(fd, prefix)

    def delete(self, key: str) -> Deletion:
        """As Store. Directories that become empty are removed."""
        parents, name = _parts(key)
        path = self._path / key
        with storage_errors(f"remove {path}"), named(path):
            try:
                with self._beneath.opened(parents) as directory:
                    if not immutable.release(name, dir_fd=directory):
                        return Deletion.KEPT
                    os.unlink(name, dir_fd=directory)
                    # A manifest has to be gone for good before what it names is removed, also where the filesystem has
                    # no journal that keeps the order.
                    with suppress(OSError):
                        sync(directory)
            except (FileNotFoundError, NotADirectoryError):
                return Deletion.ABSENT
            except PermissionError:  # the append-only flag (chattr), or a directory of somebody else
                return Deletion.KEPT
            with suppress(OSError, StorageError):
                for count in range(len(parents), 0, -1):
                    with self._beneath.opened(parents[: count - 1]) as above:
                        os.rmdir(parents[count - 1], dir_fd=above)
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
        parents, name = _parts(key)
        path = self._path / key
        with storage_errors(f"make {path} immutable"), named(path):
            try:
                with self._beneath.opened(parents) as directory:
                    end = immutable.until(name, dir_fd=directory)
                    if end is not None and end >= until.replace(microsecond=0):
                        return False
                    immutable.make(name, until, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def close(self) -> None:
        """As Store."""
        self._beneath.close()

    def _exists(self, parents: Sequence[str], name: str) -> bool:
        try:
            with self._beneath.opened(parents) as directory:
                return exists(name, directory)
        except FileNotFoundError:
            return False

    def _give_name(self, temporary: str, incoming: int, parents: Sequence[str], name: str) -> bool:
        """Give a file its name unless that is taken; return True if it has it now."""
        while True:
            try:
                with self._beneath.opened(parents, make=True) as directory:
                    _name(temporary, incoming, name, directory)
                    sync(directory)
            except FileExistsError:
                return False
            except FileNotFoundError:  # a delete has just removed the directory, which had become empty
                if not exists(temporary, incoming):
                    raise
            else:
                return True


def _mark(status: os.stat_result) -> str:
    """Return what tells a file from another: not its inode, which FUSE (sshfs) gives anew when it has forgotten it."""
    return f"{status.st_size} {status.st_mtime_ns}"


def _parts(key: str) -> tuple[Sequence[str], str]:
    """Return the names of the directories in which an object is, and its own. Raises StorageError."""
    refuse_key(key)
    *parents, name = key.split("/")
    return parents, name


def _name(temporary: str, incoming: int, name: str, directory: int) -> None:
    """Give a file its name. Raises FileExistsError if that is taken."""
    try:
        # What somebody has put in the place of the file is not followed either.
        os.link(temporary, name, src_dir_fd=incoming, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as err:
        if err.errno not in _NO_LINKS:
            raise
        filesystem.move(temporary, name, source_fd=incoming, free_fd=directory)


def _write(name: str, directory: int, key: str, source: Source, size_bytes: int) -> None:
    done_bytes = 0
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
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


def _walk(fd: int, prefix: str) -> Iterator[StoredObject]:
    """Yield what is below an open directory, which is closed at the end, in the order of the keys.

    A directory sorts as its name with a slash.
    """
    try:
        with os.scandir(fd) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
        directories = {entry.name for entry in found if entry.is_dir(follow_symlinks=False)}
        for entry in sorted(found, key=lambda each: each.name + "/" * (each.name in directories)):
            if entry.name in directories:
                if prefix.count("/") < MAX_DEPTH:
                    yield from _walk_below(fd, entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # it was deleted meanwhile
                    status = entry.stat(follow_symlinks=False)
                    modified = datetime.fromtimestamp(status.st_mtime, tz=timezone.utc)
                    yield StoredObject(prefix + entry.name, status.st_size, modified)
    finally:
        os.close(fd)


def _walk_below(fd: int, name: str, prefix: str) -> Iterator[StoredObject]:
    try:
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except (FileNotFoundError, NotADirectoryError):  # it was deleted meanwhile, or is another thing now
        return
    yield from _walk(below, prefix)


def _tidy(incoming: int) -> None:
    """Remove what processes have left that were killed long ago."""
    with suppress(OSError):
        fd = listable(incoming)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - _ABANDONED_S:
                        os.unlink(entry.name, dir_fd=fd)
        finally:
            os.close(fd)
