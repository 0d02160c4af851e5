"""Put the images on the disk while QEMU still fills them, and tell if that fails.

QEMU writes them to the page cache (vbackup.images.tuning). Without this the kernel would begin to write when a tenth
of the memory is dirty, and the guest and everybody else would wait for it at the end.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from vbackup.files import MAX_FSYNCS, open_regular, storage_errors
from vbackup.qemu.jobs import Job

log = logging.getLogger(__name__)

#: What a job copies before it is put on the disk. Small backups are put there once, at their end.
PIECE_BYTES = 64 * 1024 * 1024


class Writeback:
    """The images, by the id of the job that writes them. A context manager.

    The descriptors stay open from the first byte to the last: the kernel tells each descriptor once of data that it
    could not write, and a descriptor that is opened later not of what was told to another. Raises StorageError.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._fds: dict[str, int] = {}
        self._asked_at: dict[str, int] = {}
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: set[str] = set()
        self._errors: dict[str, OSError] = {}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Writeback:
        try:
            for job_id, path in self._paths.items():
                with storage_errors(f"open {path}"):
                    self._fds[job_id] = open_regular(path, os.O_RDWR)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if self._thread is None:
            self._close()
            return
        # Whoever gives up is not held up by storage that hangs: the thread closes the files when it can.
        self._queue.put(None)
        if kind is None:
            self._thread.join()

    def on_tick(self, jobs: Mapping[str, Job]) -> None:
        """Have what the jobs have copied put on the disk, if it is worth it. Raises StorageError where that failed."""
        for job_id, error in list(self._errors.items()):
            self._raise(job_id, error)
        for job_id, one in jobs.items():
            begun = self._asked_at.setdefault(job_id, 0)
            if job_id in self._fds and job_id not in self._pending and one.done_bytes - begun >= PIECE_BYTES:
                self._asked_at[job_id] = one.done_bytes
                self._pending.add(job_id)
                self._start()
                self._queue.put(partial(self._sync, job_id))

    def finish(self) -> None:
        """Put all of every image on the disk. Raises NoSpaceError, StorageError where it cannot be."""

        def sync(job_id: str) -> None:
            with storage_errors(f"write {self._paths[job_id]}"):
                os.fsync(self._fds[job_id])

        # First what is under way: an error that is told there is not told here again.
        if self._thread is not None:
            is_idle = threading.Event()
            self._queue.put(is_idle.set)
            is_idle.wait()
        for job_id, error in list(self._errors.items()):
            self._raise(job_id, error)
        with ThreadPoolExecutor(max_workers=MAX_FSYNCS) as pool:
            for _ in pool.map(sync, self._fds):
                pass

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="writeback", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
        self._close()

    def _sync(self, job_id: str) -> None:
        try:
            os.fdatasync(self._fds[job_id])
        except OSError as err:
            log.debug("%s: %s", self._paths[job_id], err)
            self._errors[job_id] = err
        self._pending.discard(job_id)

    def _raise(self, job_id: str, error: OSError) -> None:
        with storage_errors(f"write {self._paths[job_id]}"):
            raise error

    def _close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
