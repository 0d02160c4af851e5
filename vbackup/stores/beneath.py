"""Directories below one that is open, found name by name so that no symbolic link leads out of it.

Whoever may write in a directory can put a symbolic link in the place of one below it, at any moment, also between a
check and what follows. So each name is opened in the directory that was opened before it, and no link is followed
(openat with O_NOFOLLOW); what is done afterwards is done in that directory, whatever its name leads to by then.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vbackup.errors import StorageError

#: To go through a directory needs no right to list it.
_THROUGH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o700


class Beneath:
    """A directory, which is opened when it is needed first, and is that one from then on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the directory; it is opened again if something is asked for."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        """Close the directory of who forgot it."""
        self.close()

    @contextmanager
    def opened(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Yield a descriptor of the directory that is called by these names, one below the other; none: the directory.

        It serves for ``dir_fd``. ``make``: those that are missing are made, with mode 0700, and are on the disk then.
        Raises StorageError if one is a symbolic link, OSError (FileNotFoundError, NotADirectoryError).
        """
        with named(self.path.joinpath(*parts)):
            fd = self._root()
            try:
                for number, part in enumerate(parts):
                    below = self._below(fd, part, self.path.joinpath(*parts[: number + 1]), make=make)
                    os.close(fd)
                    fd = below
            except BaseException:
                os.close(fd)
                raise
        try:
            yield fd
        finally:
            os.close(fd)

    def _root(self) -> int:
        """Return a descriptor of the directory for one use: another thread may close the store meanwhile."""
        with self._lock:
            if self._fd is None:
                self._fd = os.open(self.path, _THROUGH)
            return os.dup(self._fd)

    def _below(self, fd: int, name: str, path: Path, *, make: bool) -> int:
        try:
            return self._through(fd, name, path)
        except FileNotFoundError:
            if not make:
                raise
        with suppress(FileExistsError):  # another copy was faster
            os.mkdir(name, _MODE, dir_fd=fd)
        sync(fd)
        return self._through(fd, name, path)

    def _through(self, fd: int, name: str, path: Path) -> int:
        try:
            return os.open(name, _THROUGH, dir_fd=fd)
        except OSError as err:
            if err.errno not in (errno.ENOTDIR, errno.ELOOP) or not _is_link(name, fd):
                raise
            raise StorageError(
                f"{path} is a symbolic link, which could lead out of {self.path}; vbackup does not follow it."
            ) from err


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an OSError be about ``path``: what it has by itself is a name in an open directory."""
    try:
        yield
    except OSError as err:
        if err.filename is not None:
            err.filename = os.fspath(path)
            err.filename2 = None
        raise


def listable(fd: int) -> int:
    """Return a new descriptor of an open directory, one that can be listed and synced. Raises OSError."""
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)


def sync(fd: int) -> None:
    """Put the names in an open directory on the disk. Raises OSError."""
    there = listable(fd)
    try:
        os.fsync(there)
    finally:
        os.close(there)


def exists(name: str, fd: int) -> bool:
    """Return whether there is anything of this name in an open directory, be it a link. Raises OSError."""
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_link(name: str, fd: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False
