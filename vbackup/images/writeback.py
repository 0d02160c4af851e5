"""Write the images back from the page cache to storage while QEMU still fills them, and report errors.

QEMU writes to the page cache (vbackup.images.tuning). Without this module, the kernel would start writing back only
when a tenth of the memory is dirty, and the guest and all other processes would have to wait at the end.
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

#: How long, after an error, to wait for syncs that are running. The images are about to be removed, which NFS and SMB
#: only do with files that are closed; but storage that hangs must not hold up the rest of the undo.
CLOSING_S = 10.0
#: How much a job copies between two syncs. Smaller backups are synced once, at their end.
PIECE_BYTES = 64 * 1024 * 1024


class Writeback:
    """Syncs the images of running jobs. A context manager.

    ``paths`` has the images by the id of the job that writes them. Their descriptors stay open from the first byte to
    the last: the kernel reports a write error once to each open descriptor, and not to one that is opened after
    another has seen it. Entering raises StorageError if an image cannot be opened.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._fds: dict[str, int] = {}
        self._synced_bytes: dict[str, int] = {}
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: set[str] = set()
        self._errors: dict[str, OSError] = {}
        self._thread: threading.Thread | None = None
        self._is_abandoned = False

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
        # After an error, do not wait for long: storage may hang. The thread closes the files when it can.
        self._is_abandoned = kind is not None
        self._queue.put(None)
        self._thread.join(CLOSING_S if self._is_abandoned else None)

    def on_tick(self, jobs: Mapping[str, Job]) -> None:
        """Start a sync of each image whose job has copied PIECE_BYTES since the last one.

        Raises NoSpaceError or StorageError if an earlier sync failed.
        """
        for job_id, error in list(self._errors.items()):
            self._raise(job_id, error)
        for job_id, job in jobs.items():
            synced_bytes = self._synced_bytes.setdefault(job_id, 0)
            if job_id in self._fds and job_id not in self._pending and job.done_bytes - synced_bytes >= PIECE_BYTES:
                self._synced_bytes[job_id] = job.done_bytes
                self._pending.add(job_id)
                self._start()
                self._queue.put(partial(self._sync, job_id))

    def finish(self) -> None:
        """Sync all images completely and wait for it. Raises NoSpaceError or StorageError if that fails."""

        def sync(job_id: str) -> None:
            with storage_errors(f"write {self._paths[job_id]}"):
                os.fsync(self._fds[job_id])

        # Wait for running syncs first: the kernel does not report an error again that they have seen.
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
            if not self._is_abandoned:
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
