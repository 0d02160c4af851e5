"""A file without a name on a hypervisor, which its QEMU reads and writes: its content is sent there, and fetched again.

Holes stay holes and are not transferred. Several pieces are under way at the same time, so that the round trips of the
link do not add up.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vbackup.errors import RemoteError
from vbackup.remote.link import PIECE_BYTES, Link

#: How many pieces are under way.
PARALLEL = 8


@dataclass(frozen=True)
class NamelessFile:
    """The file; it is gone when it is closed here and QEMU has closed it, and when the link ends."""

    link: Link
    handle: int

    @classmethod
    def make(cls, link: Link, directory: str) -> NamelessFile:
        """Make an empty one in a directory there. Raises RemoteError, LinkLostError, as all methods do."""
        return cls(link, link.nameless_file(directory))

    @property
    def path(self) -> str:
        """The path by which a program that the helper has started can open it."""
        return f"/proc/{self.link.hello['pid']}/fd/{self.handle}"

    def give(self, uuid: str, opaque: str) -> str:
        """Pass it to the QEMU of a domain there; returns the file name by which QEMU opens it."""
        return f"/dev/fdset/{self.link.pass_handle(uuid, opaque, self.handle)}"

    def close(self) -> None:
        """Close it."""
        self.link.close_handle(self.handle)

    def send(self, fd: int, *, check: Callable[[], None]) -> None:
        """Fill it, while it is empty, with the content of a file of this host.

        ``check`` is called between pieces and may raise. Raises OSError, too.
        """
        self.link.resize(self.handle, os.fstat(fd).st_size)

        def move(offset: int, length: int) -> None:
            self.link.put(self.handle, offset, os.pread(fd, length, offset))

        _move_all(_pieces(_data(fd)), move, check=check)

    def fetch(self, fd: int, *, check: Callable[[], None]) -> int:
        """Replace the content of a file of this host by its content; returns how many bytes were no hole.

        Nobody may write to it any more. ``check`` and OSError: see ``send``.
        """
        os.ftruncate(fd, 0)
        os.ftruncate(fd, self.link.extents(self.handle, 0)[0])
        return _move_all(_pieces(self._extents()), lambda offset, length: self._get(fd, offset, length), check=check)

    def _get(self, fd: int, offset: int, length: int) -> None:
        data = self.link.get(self.handle, offset, length)
        if len(data) != length:
            raise RemoteError(self.link.host, "read a file", "it became shorter")
        left = memoryview(data)
        while left:
            written = os.pwrite(fd, left, offset)
            left, offset = left[written:], offset + written

    def _extents(self) -> Iterator[tuple[int, int]]:
        start = 0
        while extents := self.link.extents(self.handle, start)[1]:
            yield from extents
            start = extents[-1][1]


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of the parts of a file that are no holes."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _pieces(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, end in extents:
        for offset in range(start, end, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, end - offset)


def _move_all(pieces: Iterable[tuple[int, int]], move: Callable[[int, int], None], *, check: Callable[[], None]) -> int:
    total = 0
    with ThreadPoolExecutor(PARALLEL) as pool:
        waiting: deque[Future[None]] = deque()
        for offset, length in pieces:
            check()
            if len(waiting) == PARALLEL:
                waiting.popleft().result()
            waiting.append(pool.submit(move, offset, length))
            total += length
        for one in waiting:
            one.result()
    return total
