"""What a store reads when it is given an object: slowed, digested and counted while it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vbackup.errors import ChainError
from vbackup.files import open_regular, storage_errors
from vbackup.repository.block_list import Algorithm
from vbackup.repository.read_rate import ReadRate
from vbackup.stores.store import Store

_PIECE_BYTES = 1024 * 1024


class Outgoing:
    """A source for Store.put_new. A store that sends a part again seeks back; the digest goes on where it was."""

    def __init__(
        self, file: BinaryIO, algorithm: Algorithm, *, rate: ReadRate, progress: Callable[[int], None]
    ) -> None:
        """``progress`` gets the number of bytes that were read so far, at most."""
        self._file = file
        self._algorithm, self._made = algorithm, algorithm.new()
        self._rate, self._progress = rate, progress
        self._offset = self._digested = 0

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes. Raises what ends the copy."""
        data = self._file.read(size)
        self._rate.take(len(data))
        new = memoryview(data)[max(0, self._digested - self._offset) :]
        self._offset += len(data)
        if self._offset > self._digested:
            self._made.update(new)
            self._digested = self._offset
            self._progress(self._digested)
        return data

    def seek(self, offset: int, /) -> int:
        """Continue at ``offset`` bytes."""
        if offset > self._digested:
            raise ValueError(f"what is before byte {offset} was not read yet")
        self._offset = self._file.seek(offset)
        return self._offset

    def rest(self) -> None:
        """Read what the store has not read: an object that is there already is digested all the same."""
        self.seek(self._digested)
        while self.read(_PIECE_BYTES):
            pass

    @property
    def digest(self) -> str:
        """The digest of what was read, in the form that manifests have."""
        return self._algorithm.text(self._made)

    def is_content_of(self, store: Store, key: str) -> bool:
        """Return True if an object has the content that was read; False also if it cannot be read."""
        made = self._algorithm.new()
        try:
            for piece in store.get(key):
                self._rate.take(len(piece))
                made.update(piece)
        except (FileNotFoundError, ChainError):
            return False
        return self._algorithm.text(made) == self.digest


def put(store: Store, key: str, source: Outgoing, size_bytes: int) -> bool:
    """Store a file of so many bytes; return True if it is what the store has under the key then.

    A key that was free can be taken: by this file, if a store has tried twice and the first answer was lost, or by
    another one, if a request of a killed run was still on its way. Raises what Store.put_new does.
    """
    is_new = store.put_new(key, source, size_bytes)
    source.rest()
    return is_new or source.is_content_of(store, key)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Yield a regular file, open for reading, and its size in bytes. Raises StorageError."""
    with storage_errors(f"read {path}"):
        file = os.fdopen(open_regular(path), "rb", buffering=0)
    with file, storage_errors(f"read {path}"):
        yield file, os.fstat(file.fileno()).st_size
