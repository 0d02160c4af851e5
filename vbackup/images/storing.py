"""Put a file on storage while another process still writes it, so that there is little left to wait for at the end.

vbackup.images.writeback does it for the images of a backup, whose errors also have to end QEMU's jobs.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from vbackup import files

#: How much is written between two syncs.
PIECE_BYTES = 64 * 1024 * 1024


class Storing:
    """Syncs one file. A context manager, which ends when everything is stored that ``all`` was called for.

    Leaving it raises OSError if a sync failed: the kernel reports an error of write-back once, and to whom it likes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun_bytes = 0
        self._syncs: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="storing")

    def __enter__(self) -> Storing:
        return self

    def __exit__(self, kind: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for sync in self._syncs:
                sync.result()

    def some(self, done_bytes: int) -> None:
        """Start a sync if enough was written since the last one, and that one has ended."""
        if done_bytes - self._begun_bytes >= PIECE_BYTES and (not self._syncs or self._syncs[-1].done()):
            self._begun_bytes = done_bytes
            self.all()

    def all(self) -> None:
        """Start a sync of all that was written so far, without waiting for it."""
        self._syncs.append(self._pool.submit(files.fsync, self._path))
