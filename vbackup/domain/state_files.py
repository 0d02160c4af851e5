"""Read files that a machine may be writing at this moment, or say why they are not in the backup."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vbackup.domain.host_files import FileStatus, HostFiles

#: What changes in moments is the same soon; what is written all the time would be a fault.
MAX_READINGS = 10

T = TypeVar("T")


class UnsavedError(Exception):
    """Something that the machine has cannot be in the backup. ``is_unexpected``: a warning should tell the user."""

    def __init__(self, reason: str, *, is_unexpected: bool = False, is_too_large: bool = False) -> None:
        self.is_unexpected = is_unexpected
        self.is_too_large = is_too_large
        super().__init__(reason)


def stable(read: Callable[[], T], what: str) -> T:
    """Return what two readings in a row have said alike: it is of one moment, although a guest may write meanwhile.

    ``what`` names it in the UnsavedError that is raised if it changes each time.
    """
    before = read()
    for _ in range(MAX_READINGS - 1):
        now = read()
        if now == before:
            return now
        before = now
    raise UnsavedError(f"{what} changed each time it was read", is_unexpected=True)


@contextmanager
def told(what: str, *, too_large: str) -> Iterator[None]:
    """Translate OSError into UnsavedError: "``what`` cannot be read: No such file", or "``what`` ``too_large``"."""
    try:
        yield
    except OSError as err:
        is_too_large = err.errno == errno.EFBIG
        why = too_large if is_too_large else f"cannot be read: {err.strerror or err}"
        raise UnsavedError(f"{what} {why}", is_unexpected=True, is_too_large=is_too_large) from err


def pieces(files: HostFiles, path: str, what: str, *, max_bytes: int) -> Iterator[bytes]:
    """Yield the content of a file that nobody should be writing. ``path`` may be a symbolic link, as of a kernel.

    Raises UnsavedError if it cannot be read, is larger than ``max_bytes``, or was changed meanwhile.
    """
    what = f"{what} {path}"
    seen: list[FileStatus] = []
    read_bytes = 0
    with told(what, too_large=f"is larger than {max_bytes // 1024**2} MiB"):
        for one in files.pieces(path, max_bytes=max_bytes):
            if isinstance(one, FileStatus):
                seen.append(one)
            else:
                read_bytes += len(one)
                yield one
    before, after = seen
    if (read_bytes, after) != (before.size_bytes, before):
        raise UnsavedError(f"{what} changed while it was read", is_unexpected=True)
