"""Lock a domain in a repository, or wait for its lock. vbackup.repository.repository holds the lock during a backup.

The lock is the kernel's, on an open file (flock), so it ends with its process, however that ends. Some filesystems do
not lock (``works``); the journals of unfinished backups then tell who is at work (vbackup.repository.liveness).
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import BusyError
from vbackup.files import open_regular, refuse_link
from vbackup.report import Reporter
from vbackup.stop import Stop

#: Name of the lock's file in a domain's directory.
LOCK = "lock"
#: Pause between two attempts to lock, and so the longest delay until a request to stop is noticed.
TICK_S = 0.25
#: Device and inode of the files that this process has locked, by descriptor: threads exclude each other also where
#: flock() lets everybody have a lock, and only this tells a thread what another one is doing.
_held: dict[int, tuple[int, int]] = {}
_guard = threading.Lock()


@dataclass(frozen=True)
class LockWait:
    """How to wait for a domain that another vbackup is working on."""

    limit_s: float  #: the longest wait; 0 tries once
    reporter: Reporter  #: is informed when a wait starts
    stop: Stop  #: ends the wait
    name: str | None = None  #: of the domain, for messages; None: as the repository has it


def works(path: Path) -> bool:
    """Return False if the filesystem lets two have the lock of a file at once; the lock may be held or not.

    Only this host is asked: where each host has separate locks (NFS mounted with nolock), they do work on each.
    Raises OSError.
    """
    fds: list[int] = []
    try:
        for _ in range(2):
            fds.append(open_regular(path, os.O_RDWR))
            fcntl.flock(fds[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        for fd in fds:
            os.close(fd)
    return False


def take(directory: Path, name: str, *, check: Callable[[], None] = lambda: None) -> int:
    """Create ``directory`` and a lock file in it if necessary; lock the file and return its descriptor.

    ``name`` is the domain's, for messages. ``check`` is called with the lock held, and may raise BusyError as well.
    ``release`` releases it, or the end of the process. Raises BusyError if another process or thread has the lock,
    StorageError if the directory is a symbolic link, OSError.
    """
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        refuse_link(directory)
        try:
            fd = open_regular(directory / LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue  # a failed first backup has just removed its directory, and with it the lock
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), (directory / LOCK).stat()):
                _hold(fd)
                check()
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError as err:
            release(fd)
            raise BusyError(
                f"Another vbackup is working on domain {name} in this repository; wait for it to end."
            ) from err
        except BaseException:
            release(fd)
            raise
        release(fd)


def release(fd: int) -> None:
    """Close the descriptor that ``take`` or ``wait_for`` has returned, and with it end the lock."""
    with _guard:
        _held.pop(fd, None)
        os.close(fd)


def is_held_here(directory: Path) -> bool:
    """Return True if a thread of this process has the lock of a domain's directory. Nothing is locked."""
    try:
        status = (directory / LOCK).stat()
    except OSError:
        return False
    with _guard:
        return (status.st_dev, status.st_ino) in _held.values()


def _hold(fd: int) -> None:
    """Note that this process has the lock. Raises BlockingIOError if another thread has it."""
    status = os.fstat(fd)
    with _guard:
        if (status.st_dev, status.st_ino) in _held.values():
            raise BlockingIOError(errno.EWOULDBLOCK, "another thread has the lock")
        _held[fd] = (status.st_dev, status.st_ino)


def wait_for(directory: Path, name: str, wait: LockWait, *, check: Callable[[], None] = lambda: None) -> int:
    """Like ``take``, but retry until the lock is free or ``wait.limit_s`` seconds have passed.

    Raises as ``take``, and InterruptedBySignalError if a signal ends the wait.

    flock() waits without a limit, and Python resumes that wait after each signal (PEP 475). The wait has to wake up for
    a request to stop anyway, and can then try again. That also works where the filesystem implements flock()
    differently, as NFS does.
    """
    deadline = time.monotonic() + wait.limit_s
    pause = threading.Event()
    reported = False
    while True:
        wait.stop.check()
        try:
            return take(directory, name, check=check)
        except BusyError:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
        if not reported:
            wait.reporter.step(
                f"Another vbackup is working on domain {name} in this repository; waiting up to {wait.limit_s:g} s for"
                " it to end."
            )
            reported = True
        pause.wait(min(TICK_S, left_s))
