"""Images of a target that are fetched in parts, when something is read of them: QEMU gets them by NBD.

A part that was fetched is kept in a file until the end, so it is fetched once, and what was checked in it stays what is
read: nobody at the target can exchange a header between. A small image comes whole, and is compared with its digest;
parts of a larger one cannot be, unless they are sealed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.copies.download import Wanted
from vbackup.errors import ChainError, StorageError, VbackupError
from vbackup.files import storage_errors
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_server import NbdServer

if TYPE_CHECKING:
    from vbackup.report import Reporter
    from vbackup.stores.store import Store

#: How much is fetched for a byte, and at most at once where one part after the other is read.
PART_BYTES, MAX_BYTES = 1024 * 1024, 16 * 1024 * 1024
#: An image of up to this size is fetched whole.
SMALL_BYTES = 16 * 1024 * 1024
#: Images whose first part is fetched at a time.
_PARALLEL = 8
#: What the name of a file has behind that of its image, until its first part is there and its address is known.
_UNFINISHED = ".shown"
_MISSING, _COMING, _THERE = 0, 1, 2


class PartsFile:
    """An object of which a file has the parts that were read; an Export (vbackup.qemu.nbd_server)."""

    def __init__(
        self,
        store: Store,
        key: str,
        path: Path,
        size_bytes: int,
        warn: Callable[[str], None],
        *,
        mark: str | None = None,
    ) -> None:
        """Make the file. ``mark``: of the object (Store.look); another one with its key is not read. Raises OSError."""
        self._store, self._key, self._warn, self._mark = store, key, warn, mark
        self.size_bytes = size_bytes
        self._states = bytearray(-(-size_bytes // PART_BYTES))
        self._changed = threading.Condition()
        # It is closed when no thread reads it any more: one may wait for a network that is gone.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, size_bytes)

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_fd"):
            os.close(self._fd)

    @property
    def fetched_bytes(self) -> int:
        """How much is there."""
        return min(self.size_bytes, self._states.count(_THERE) * PART_BYTES)

    def read(self, offset: int, length: int) -> bytes:
        """As Export: what is not there yet is fetched."""
        try:
            self.bring(offset, length)
        except VbackupError as err:
            self._warn(str(err))
            raise OSError(errno.EIO, str(err)) from err
        data = bytearray()
        while len(data) < length and (piece := os.pread(self._fd, length - len(data), offset + len(data))):
            data += piece
        return bytes(data)

    def bring(self, offset: int, length: int) -> None:
        """Fetch what is not there yet of a range. Raises ChainError, StorageError, NoSpaceError."""
        first, last = offset // PART_BYTES, (offset + length - 1) // PART_BYTES
        while (run := self._next(first, last)) is not None:
            is_there = False
            try:
                self._fetch(*run)
                is_there = True
            finally:
                with self._changed:
                    self._states[run[0] : run[1]] = bytes([_THERE if is_there else _MISSING]) * (run[1] - run[0])
                    self._changed.notify_all()

    def _next(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the next parts that this thread has to fetch, from one to before another; None if all are there."""
        with self._changed:
            while True:
                states = self._states[first : last + 1]
                if _MISSING in states:
                    break
                if _COMING not in states:
                    return None
                self._changed.wait()
            start = first + states.index(_MISSING)
            # Where the part before is there, somebody reads one after the other.
            is_reading_on = start > 0 and self._states[start - 1] == _THERE
            limit = min(len(self._states), start + MAX_BYTES // PART_BYTES)
            end = start + 1
            while end < limit and self._states[end] == _MISSING and (end <= last or is_reading_on):
                end += 1
            self._states[start:end] = bytes([_COMING]) * (end - start)
            return start, end

    def _fetch(self, first: int, end: int) -> None:
        at, until = first * PART_BYTES, min(self.size_bytes, end * PART_BYTES)
        try:
            for piece in self._store.get(self._key, at, until - at, mark=self._mark):
                with storage_errors("write to the cache"):
                    view = memoryview(piece)
                    while view:
                        written = os.pwrite(self._fd, view, at)
                        view, at = view[written:], at + written
        except FileNotFoundError:
            raise ChainError(f"{self._key} is missing at {self._store.name}.") from None
        if at != until:
            raise StorageError(f"{self._store.name} ended {self._key} after {at} of {self.size_bytes} bytes.")


class Parts:
    """Serves images of a target in parts until the end of its block."""

    def __init__(
        self, store: Store, directory: Path, *, reporter: Reporter, check: Callable[[], None] = lambda: None
    ) -> None:
        """``directory``: of the socket; only this user may enter it. ``check`` is called by ``add``, and may raise."""
        self._check = check
        self._store, self._socket = store, directory / "nbd"
        self._files: dict[str, PartsFile] = {}
        self._warned: set[str] = set()
        self._reporter = reporter
        self._stack = ExitStack()
        self._stack.enter_context(NbdServer(self._socket, self._files))

    def close(self) -> None:
        """End: who reads an image gets errors."""
        self._stack.close()

    def add(self, objects: Sequence[Wanted], served: dict[Path, NbdAddress]) -> None:
        """Serve objects, all of them or none; ``served`` gets the address of each by its path.

        There, the file has its first part. What has the name of an image is whole, or in ``served``: a file gets it
        last, and what has failed leaves none. Raises ChainError if one is missing or of another size, StorageError,
        NoSpaceError, what ``check`` raises.
        """
        paths = [each.path for each in objects if each.path is not None]
        named: list[Path] = []
        try:
            with ThreadPoolExecutor(max_workers=_PARALLEL) as pool:
                served.update(pool.map(self._add, objects))
            for path in paths:
                with storage_errors(f"write {path}"):
                    _unfinished(path).rename(path)
                named.append(path)
        except BaseException:
            for path in (*named, *map(_unfinished, paths)):
                with suppress(OSError):
                    path.unlink()
            for path in paths:
                if path not in named or not path.exists():
                    served.pop(path, None)
            raise

    @property
    def fetched_bytes(self) -> int:
        """How much was fetched."""
        return sum(each.fetched_bytes for each in self._files.values())

    def _add(self, each: Wanted) -> tuple[Path, NbdAddress]:
        assert each.path is not None
        self._check()
        size_bytes, there = each.record.size_bytes, self._store.look(each.key)
        if there is None or there.size_bytes != size_bytes:
            how = "is missing" if there is None else f"has {there.size_bytes} bytes instead of {size_bytes}"
            raise ChainError(f"{each.key} {how} at {self._store.name}.")
        with storage_errors(f"write {each.path}"):
            path = _unfinished(each.path)
            made = PartsFile(self._store, each.key, path, size_bytes, self._warn, mark=there.mark)
            made.bring(0, 1)
        self._files[each.key] = made
        return each.path, NbdAddress(each.key, path=self._socket)

    def _warn(self, text: str) -> None:
        """Say it once: a program that reads a file tries again and again."""
        if text not in self._warned:
            self._warned.add(text)
            self._reporter.warning(text)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + _UNFINISHED)
