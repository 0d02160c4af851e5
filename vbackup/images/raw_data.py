"""Find out where a raw image file has data, by the filesystem's account of it (lseek with SEEK_DATA).

QEMU itself skips the holes of a raw image by the same call, but has no command that tells where they are. The name of a
file proves nothing: another one may have it by now. So what is asked about is the file that the process which works on
the disk has open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vbackup.files import open_regular
from vbackup.process import OpenFiles


def open_held(path: Path, *, size_bytes: int, open_files: OpenFiles) -> int | None:
    """Open the file for reading, if it is one of ``open_files``: those of the process that works on the disk.

    Returns a descriptor, or None if it is another file, or not a regular one of ``size_bytes``, which QEMU rounds up
    to sectors.
    """
    try:
        fd = open_regular(path)
    except OSError:
        return None
    status = os.fstat(fd)
    is_whole = 0 <= size_bytes - status.st_size < 512  # noqa: PLR2004
    if not is_whole or (status.st_dev, status.st_ino) not in open_files:
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
