"""One run at a time works on a repository: a lock in the state directory of daily operation (vbackup.runs.store).

It is not in the repository, which may not be mounted; what other commands do there, the locks of its domains keep
apart. The lock is the kernel's, on an open file (flock), so it ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vbackup.errors import BusyError
from vbackup.files import make_private, open_regular, storage_errors
from vbackup.report import Reporter
from vbackup.stop import Stop

#: Pause between two attempts to lock, and so the longest delay until a request to stop is noticed.
TICK_S = 0.25
_DIRECTORY = "run.lock.d"
_MAX_BYTES = 4096


@contextmanager
def held(state: Path, repository: Path, *, job: str, wait_s: float, reporter: Reporter, stop: Stop) -> Iterator[None]:
    """Keep the repository for the run of a job during the block.

    Raises BusyError if another run still has it after ``wait_s`` seconds, StorageError, and what ``stop`` raises.
    """
    directory = state / _DIRECTORY
    path = directory / _name(repository)
    with storage_errors(f"use the directory {directory}"):
        make_private(state)
        make_private(directory)
        fd = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        _wait(fd, path, repository, wait_s=wait_s, reporter=reporter, stop=stop)
        # Who has it is for people only, and no reason not to back up where there is no room for a line.
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"job": job, "pid": os.getpid(), "repository": str(repository)}).encode(), 0)
        yield
    finally:
        os.close(fd)


@contextmanager
def of_job(state: Path, job: str) -> Iterator[None]:
    """Keep a job for this process during the block. Raises BusyError if another one runs it, StorageError."""
    directory = state / _DIRECTORY
    path = directory / f"job-{job}"
    with storage_errors(f"use the directory {directory}"):
        make_private(state)
        make_private(directory)
        fd = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _is_locked(fd, path):
            raise BusyError(f"Job {job} is running; run the same command again when it has ended.")
        yield
    finally:
        os.close(fd)


def _name(repository: Path) -> str:
    """Return the same name for all paths of a repository; nothing in it is looked at."""
    return hashlib.sha256(os.fsencode(os.path.realpath(repository))).hexdigest()[:16]


def _is_locked(fd: int, path: Path) -> bool:
    """Lock the file, and return False if another process has it. Raises StorageError: NFS can be without locks."""
    with storage_errors(f"lock {path} (VBACKUP_STATE can name a directory on a local filesystem)"):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _wait(fd: int, path: Path, repository: Path, *, wait_s: float, reporter: Reporter, stop: Stop) -> None:
    deadline, pause, has_reported = time.monotonic() + wait_s, threading.Event(), False
    while True:
        stop.check()
        if _is_locked(fd, path):
            return
        holder = f"{_holder(fd)} is working on {repository}"
        if time.monotonic() >= deadline:
            raise BusyError(f"{holder}; run the same command again when it has ended.")
        if not has_reported:
            reporter.step(f"{holder}; waiting up to {wait_s:g} s for it to end.")
            has_reported = True
        pause.wait(min(TICK_S, max(deadline - time.monotonic(), 0.0)))


def _holder(fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, _MAX_BYTES, 0))
        return f"The run of job {holder['job']} (pid {holder['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "Another run"  # which has just begun
