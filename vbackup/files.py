"""Open files that somebody else may have put there: only regular ones, never by a symbolic link, without waiting.

A repository is data from a possibly broken or hostile disk. A FIFO in the place of a file would be waited for without
an end, a device can act when it is opened, a symbolic link leads out of the repository.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file. Raises OSError, also where it is anything but a regular file.

    It is looked at before it is opened, as opening can act already, and after that, as it may have been replaced.
    """
    try:
        _check(path.lstat().st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    try:
        _check(os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """The content of the file. Raises OSError as ``open_regular``, and where it is longer than ``max_bytes``."""
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, "it is larger than any that vbackup writes")
    return data


def is_regular(path: Path) -> bool:
    """True if it is there and a regular file itself."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """True if it is there and a directory itself, not a symbolic link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")
