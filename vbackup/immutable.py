"""Files that cannot be changed, renamed or removed before a certain time: the immutable flag (chattr +i).

Even root has to remove the flag first, so mistakes, wrong scripts, and programs without that right do no harm; an
intruder who is root can remove it. When vbackup may do that stands in an extended attribute of the file, which the flag
protects as well.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.files import open_regular

#: linux/fs.h. The numbers are those of most processors, on which vbackup has other ones too.
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10
_UNTIL = "user.vbackup.immutable-until"
#: What is never removed: somebody else has set the flag.
FOR_EVER = datetime.max.replace(tzinfo=timezone.utc)
#: Errors of filesystems, and of containers, that do not have the flag or the attribute.
_CANNOT = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))


def make(path: Path | str, until: datetime, *, dir_fd: int | None = None) -> None:
    """Make a regular file immutable, at least until then; it is on storage when this returns. Raises OSError.

    ``dir_fd``: the open directory in which the path is, as for os.open; the same for the others.
    """
    fd = open_regular(path, dir_fd=dir_fd)
    try:
        if _flags(fd) & _FS_IMMUTABLE_FL:
            if _end(fd) >= until:
                return
            _set_flags(fd, _flags(fd) & ~_FS_IMMUTABLE_FL)
        os.setxattr(fd, _UNTIL, until.astimezone(timezone.utc).isoformat(timespec="seconds").encode())
        _set_flags(fd, _flags(fd) | _FS_IMMUTABLE_FL)
        os.fsync(fd)
    finally:
        os.close(fd)


def until(path: Path | str, *, dir_fd: int | None = None) -> datetime | None:
    """Return until when a file is immutable: None if it is not, FOR_EVER if vbackup has not made it so.

    Raises OSError if it cannot be opened.
    """
    fd = open_regular(path, dir_fd=dir_fd)
    try:
        if not _flags(fd) & _FS_IMMUTABLE_FL:
            return None
        return _end(fd)
    finally:
        os.close(fd)


def release(path: Path | str, *, dir_fd: int | None = None) -> bool:
    """Let a file be removed whose time is over; return whether it can be removed now. Raises OSError."""
    fd = open_regular(path, dir_fd=dir_fd)
    try:
        if not _flags(fd) & _FS_IMMUTABLE_FL:
            return True
        if _end(fd) > datetime.now(timezone.utc):
            return False
        _set_flags(fd, _flags(fd) & ~_FS_IMMUTABLE_FL)
    except PermissionError:
        return False
    finally:
        os.close(fd)
    return True


def refuse_impossible(directory: Path) -> None:
    """Raise StorageError unless this process can make files in the directory immutable, and the opposite."""
    path = directory / f".vbackup-immutable-{uuid.uuid4().hex}"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            make(path, datetime.fromtimestamp(0, tz=timezone.utc))
        finally:
            with suppress(OSError):
                release(path)
            path.unlink()
    except OSError as err:
        if err.errno in _CANNOT:
            why = "its filesystem has no immutable flag, or no extended attributes: ext4, XFS and btrfs have both"
        elif err.errno == errno.EPERM:
            why = "that needs root with the capability CAP_LINUX_IMMUTABLE, which containers often do not have"
        else:
            why = err.strerror or str(err)
        raise StorageError(f"Nothing in {directory} can be made immutable: {why}. Nothing was done.") from err


def _end(fd: int) -> datetime:
    try:
        return datetime.fromisoformat(os.getxattr(fd, _UNTIL).decode("ascii"))
    except (OSError, ValueError):
        return FOR_EVER


def _flags(fd: int) -> int:
    """Return the flags of a file, 0 if its filesystem has none."""
    flags = bytearray(8)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
    except OSError as err:
        if err.errno not in _CANNOT:
            raise
        return 0
    return int.from_bytes(flags[:4], "little")


def _set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))
