"""What the filesystem of a repository can do for a merge: share data between files, exchange two names in one step.

Both are asked of the filesystem itself, with small files, since neither its name nor the kernel's version tells.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vbackup.repository.merge_journal import PROBE

#: linux/fs.h: the target shares all data of the source, until one of them is written.
_FICLONE = 0x40049409
_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_PIECE_BYTES = 4 * 1024 * 1024
#: Errors of a filesystem, or of a kernel, that cannot do something.
_CANNOT = frozenset(
    (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES)
)
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True)
class Abilities:
    """What a filesystem can do, and the room in it."""

    reflinks: bool  #: two files can share data (FICLONE)
    exchanges: bool  #: two directories can exchange their names in one step (RENAME_EXCHANGE)
    links: bool  #: a file can have two names
    free_bytes: int


def abilities(directory: Path) -> Abilities:
    """Return what the filesystem can do in that directory, which has to be writable; a full one is not asked.

    Raises OSError.
    """
    import shutil  # imports all compression modules; who only asks for the free room does not need it

    place = directory / f"{PROBE}{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    free = free_bytes(directory)
    one, other, file = place / "one", place / "other", place / "file"

    def prepare() -> None:
        for each in (place, one, other):
            each.mkdir(mode=0o700)
        file.write_bytes(bytes(4096))

    try:
        if not _can(prepare, cannot=_FULL):
            return Abilities(reflinks=False, exchanges=False, links=True, free_bytes=free)
        return Abilities(
            reflinks=_can(lambda: clone(file, place / "clone")),
            exchanges=_can(lambda: exchange(one, other)),
            links=_can(lambda: os.link(file, place / "link")),
            free_bytes=free,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _can(action: Callable[[], object], *, cannot: Collection[int] | None = None) -> bool:
    try:
        action()
    except OSError as err:
        if err.errno not in (cannot or (_CANNOT | _FULL)):
            raise
        return False
    return True


def free_bytes(directory: Path) -> int:
    """Return the room that is left for this user, in bytes. Raises OSError."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def clone(source: Path, target: Path) -> None:
    """Make a new file that shares all data with another, with mode 0600. Raises OSError; nothing is left then."""
    with _pair(source, target) as (reading, writing):
        fcntl.ioctl(writing, _FICLONE, reading)


def copy(source: Path, target: Path, *, check: Callable[[], None], progress: Callable[[int], None]) -> None:
    """Make a new file with the same content, and separate data, with mode 0600; holes stay holes.

    ``check`` is called between pieces and may raise; ``progress`` gets the number of bytes so far. Raises OSError;
    nothing is left then.
    """
    with _pair(source, target) as (reading, writing):
        size_bytes = os.fstat(reading).st_size
        os.ftruncate(writing, size_bytes)
        for start, end in _data(reading, size_bytes):
            done = os.lseek(writing, start, os.SEEK_SET)
            while done < end:
                check()
                # Not copy_file_range(): where it can, it shares the data.
                sent = os.sendfile(writing, reading, done, min(_PIECE_BYTES, end - done))
                if sent == 0:
                    raise OSError(errno.EIO, f"{source} became shorter while it was copied")
                done += sent
                progress(done)


def _data(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of the parts of a file that are no holes."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


@contextmanager
def _pair(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield reading, writing
        except BaseException:
            with suppress(OSError):
                target.unlink()
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two files or directories: at every instant, both names exist. Raises OSError."""
    call = _renameat2()
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(one))


def move(source: Path | str, free: Path | str, *, source_fd: int | None = None, free_fd: int | None = None) -> None:
    """Rename a file or a directory; raises FileExistsError, and changes nothing, if the new name is taken.

    ``source_fd``, ``free_fd``: the open directories in which they are, as for os.rename. Raises OSError. Where the
    filesystem cannot promise that, another process could take the name in between.
    """
    call = _renameat2()
    # As os.rename, for whoever watches.
    fds = [-1 if fd is None else fd for fd in (source_fd, free_fd)]
    sys.audit("os.rename", os.fspath(source), os.fspath(free), *fds)
    source_at, free_at = (_AT_FDCWD if fd < 0 else fd for fd in fds)
    if call is not None and call(source_at, os.fsencode(source), free_at, os.fsencode(free), _RENAME_NOREPLACE) == 0:
        return
    number = ctypes.get_errno() if call is not None else errno.ENOSYS
    if number not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(number, os.strerror(number), os.fspath(free))
    try:
        os.stat(free, dir_fd=free_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, free, src_dir_fd=source_fd, dst_dir_fd=free_fd)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(free))


@lru_cache(maxsize=1)
def _renameat2() -> Any:
    """Return the C library's function, which Python has no name for; None if it has none (glibc before 2.28)."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        call.restype = ctypes.c_int
    return call
