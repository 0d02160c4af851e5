"""The lock of a directory in which a backup is mounted: it says who shows the disks there, if that process lives.

It is a record lock (fcntl(2)) on a hidden file in the directory. The kernel knows whose it is (F_GETLK), and takes it
away when that process ends, however that happens; a number in a file could by then be that of another process. A
process loses such a lock when it closes any descriptor of the file, so the holder opens it once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup.errors import BusyError, StorageError
from vbackup.files import open_regular, storage_errors

#: Name of the file.
NAME = ".vbackup-mount"
#: What the file says of a directory that was made for the mount.
_NEW = b"new\n"
#: struct flock, with its padding at the end: type, whence, start, length, pid.
_FLOCK = "hhqqi0q"


@contextmanager
def held(directory: Path, *, is_new: bool = False) -> Iterator[bool]:
    """Have the directory for the block; the file is removed at the end. Raises BusyError, StorageError.

    ``is_new``: the directory was made for the mount. The value is True if it was, for this one or for one that was
    killed: then it goes with the mount.
    """
    path = directory / NAME
    with storage_errors(f"write to {directory}"):
        fd = _taken(path)
    try:
        with storage_errors(f"write to {directory}"):
            if is_new:
                os.pwrite(fd, _NEW, 0)
            is_ours = os.pread(fd, len(_NEW) + 1, 0) == _NEW
        yield is_ours
    finally:
        path.unlink(missing_ok=True)  # before the lock ends: whoever waits for the name makes a new file
        os.close(fd)


def holder(directory: Path) -> int | None:
    """Return the process that has the directory: its pid, 0 if it is in another PID namespace, None if nobody has.

    Raises StorageError.
    """
    with storage_errors(f"read {directory}"):
        try:
            fd = open_regular(directory / NAME)
        except FileNotFoundError:
            return None
        try:
            return _holder(fd)
        finally:
            os.close(fd)


def umount_command(directory: Path) -> str:
    """Return the command, for a shell, that ends a mount."""
    return f"vbackup umount {shlex.quote(os.fspath(directory))}"


def refuse_inside(directory: Path) -> None:
    """Raise BusyError if a directory above this one, a real path, has a mount of this user or of root."""
    for above in directory.parents:
        try:
            if (above / NAME).lstat().st_uid not in (os.geteuid(), 0):
                continue  # anybody can put a file into /tmp
            pid = holder(above)
        except (OSError, StorageError):
            continue  # there is none, or none that this user can see
        if pid is not None:
            raise BusyError(
                f"{directory} is inside of {above}, where a backup is mounted (process {pid}). Give a directory outside"
                f" of it, or end that: {umount_command(above)}."
            )


def _taken(path: Path) -> int:
    """Return a descriptor of the locked file that has this name."""
    while True:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass  # its holder has just ended
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(fd)
                raise
            pid = _holder(fd)
            os.close(fd)
            if pid is None:
                continue
            raise BusyError(
                f"A backup is mounted at {path.parent} already (process {pid}). To end that:"
                f" {umount_command(path.parent)}."
            ) from err
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _holder(fd: int) -> int | None:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(pid, 0)
