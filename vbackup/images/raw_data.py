"""Find out where a raw image file has data, by the file system's account of it (lseek with SEEK_DATA).

QEMU itself skips the holes of a raw image by the same call, but has no command that tells where they are. The name of a
file proves nothing: another one may have it by now. So what is asked about is the file that the process which works on
the disk has open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from vbackup.files import open_regular

_PROC = Path("/proc")


def open_held(path: Path, *, size_bytes: int, uuid: str) -> int | None:
    """Open the file for reading, if the QEMU of the domain, or a child of this process, has the same file open.

    Returns a descriptor, or None if that cannot be proved, or the file is not a regular one of ``size_bytes``, which
    QEMU rounds up to sectors.
    """
    try:
        fd = open_regular(path)
    except OSError:
        return None
    status = os.fstat(fd)
    if not 0 <= size_bytes - status.st_size < 512 or not _is_held(status, uuid):  # noqa: PLR2004
        os.close(fd)
        return None
    return fd


def extents(fd: int, *, check: Callable[[], None]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in bytes of each part with data. ``check`` is called between them and may raise."""
    end = 0
    while True:
        check()
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # no data up to the end
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _is_held(status: os.stat_result, uuid: str) -> bool:
    return any(_is_theirs(process, uuid) and _has_open(process, status) for process in _PROC.glob("[0-9]*"))


def _is_theirs(process: Path, uuid: str) -> bool:
    """Return True for the QEMU of the domain (libvirt's ``-uuid UUID``) and for a child, such as the storage daemon."""
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        parent = int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return False
    given = zip(arguments, arguments[1:])
    return parent == os.getpid() or (b"-uuid", uuid.encode()) in given


def _has_open(process: Path, status: os.stat_result) -> bool:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            found = descriptor.stat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
            return True
    return False
