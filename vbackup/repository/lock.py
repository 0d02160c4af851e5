"""The lock on a domain in a repository, and the wait for it.

vbackup.repository.repository holds it while a backup is made.

It is a lock of the kernel's on an open file, so that it ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import BusyError, StorageError
from vbackup.files import open_regular
from vbackup.report import Reporter
from vbackup.stop import Stop

#: How often a lock that is waited for is tried, and the longest a request to stop waits to be seen.
TICK_S = 0.25


@dataclass(frozen=True)
class LockWait:
    """How long to wait for a domain that another vbackup works on, and who is told and may end the wait."""

    limit_s: float
    reporter: Reporter
    stop: Stop


def take(directory: Path, uuid: str) -> int:
    """Make and lock the file in that directory, which is made too; returns its descriptor.

    Raises BusyError where another process has it, StorageError where no file can be made there safely, OSError.
    """
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        if directory.is_symlink():
            raise StorageError(f"{directory} is a symbolic link, which vbackup does not follow out of the repository.")
        try:
            fd = open_regular(directory / "lock", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue  # the holder of a first backup's lock has just removed the directory
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), (directory / "lock").stat()):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError as err:
            os.close(fd)
            raise BusyError(
                f"Another vbackup is at work on domain {uuid} in this repository; wait for it to end."
            ) from err
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def wait_for(directory: Path, uuid: str, wait: LockWait) -> int:
    """Like ``take``, but try again until the lock is free or ``wait`` is over.

    Raises InterruptedBySignalError where a signal ends it.

    flock() itself waits without a limit, and Python takes up that wait again after each signal. Who waits has to
    wake up for a request to stop anyway, and then might as well try: that also works where the file system
    makes something else of flock(), as NFS does.
    """
    deadline = time.monotonic() + wait.limit_s
    pause = threading.Event()
    told = False
    while True:
        wait.stop.check()
        try:
            return take(directory, uuid)
        except BusyError:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
        if not told:
            wait.reporter.step(
                f"Another vbackup is at work on domain {uuid} in this repository; waiting for it to end, at most"
                f" {wait.limit_s:g} s."
            )
            told = True
        pause.wait(min(TICK_S, left_s))
