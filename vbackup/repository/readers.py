"""Show others that backups are being read, and find out whether a backup is: so that nothing in use is taken away.

A reader (restore, verify, a mount, a session) has a shared lock on the directory of every backup of its chain. What
removes a backup or changes its files takes an exclusive one, without waiting. The locks are the kernel's (flock), on
descriptors of the directories: no file is written, so a repository on a read-only filesystem can be read, and they end
with their process. Where directories cannot be locked, as on NFS, nothing is locked and nothing is known.

Two in one process count as two: a lock belongs to a descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from vbackup.errors import BusyError, ChainError
from vbackup.stop import Stop

T = TypeVar("T")

#: Pause between two attempts to lock a directory that is being changed.
TICK_S = 0.05
#: How long a reader waits for that. A merge has its backups for itself only while it writes into an image in place, or
#: while it exchanges directories.
WAIT_S = 600.0
#: Errors of a filesystem that does not lock directories: NFS wants a descriptor for writing, others have no locks.
_NO_LOCKS = frozenset((errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EISDIR))
#: Files that a process may have open besides the directories.
_OTHER_FILES = 512
#: How often a chain is read again because it changed before it was locked.
_ATTEMPTS = 100
#: Where the kernel lists all locks (proc_locks(5)).
_LOCKS = Path("/proc/locks")


@contextmanager
def reading(
    directories: Iterable[Path], *, stop: Stop | None = None, wait_s: float = WAIT_S
) -> Iterator[tuple[int, ...]]:
    """Keep these backups as they are during the block: nobody removes one, or changes its files.

    Yields the descriptors that have the locks: a process that inherits them has these too, after the block as well.
    ``stop`` ends a wait. Raises ChainError if a directory is missing, BusyError if it is being changed for longer than
    ``wait_s`` seconds, InterruptedBySignalError. What was read of the backups before may be old: see ``unchanged``.
    """
    with ExitStack() as stack:
        deadline = time.monotonic() + wait_s
        ordered = sorted(set(directories))  # in one order, or two could wait for each other
        allow_files(len(ordered))
        fds = []
        for directory in ordered:
            fds.append(_locked(directory, stop, deadline))
            stack.callback(os.close, fds[-1])
        yield tuple(fds)


@contextmanager
def unchanged(
    read: Callable[[], T], directories: Callable[[T], Iterable[Path]], *, stop: Stop | None = None
) -> Iterator[T]:
    """Return what ``read`` returns, such as a chain of a catalogue, which stays true during the block.

    ``directories`` has those that it depends on. A merge may change them between reading and locking, and then all is
    read again. Raises what ``read`` and ``reading`` raise.
    """
    value = read()
    for _ in range(_ATTEMPTS):
        with ExitStack() as stack:
            try:
                stack.enter_context(reading(directories(value), stop=stop))
            except ChainError:
                again = read()
                if again == value:
                    raise
            else:
                again = read()
                if again == value:
                    yield value
                    return
        value = again
    raise BusyError("The backups are changed all the time; run the same command again.")


@contextmanager
def claimed(directory: Path) -> Iterator[bool]:
    """Have a backup's directory for the block, if nobody reads it: the value says whether. Readers that come wait.

    It is True where directories cannot be locked. Raises OSError.
    """
    fd = _opened(directory)
    try:
        yield _has_locked(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def is_in_use(directory: Path) -> bool:
    """Return True if somebody reads the backup at this moment. Raises OSError."""
    with claimed(directory) as is_free:
        return not is_free


def users(directory: Path) -> str:
    """Return who reads a backup, for people: the processes with their commands, as far as they can be seen."""
    try:
        status = directory.lstat()
        wanted = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
        with _LOCKS.open() as file:
            locks = [words for words in map(str.split, file) if words[1] == "FLOCK"]
        pids = {int(words[4]) for words in locks if _inode(words[5]) == wanted}
    except (OSError, ValueError, IndexError):
        pids = set()
    found = [f"process {pid} ({command})" for pid in sorted(pids - {os.getpid()}) if (command := _command(pid))]
    return ", ".join(found) or "a restore, a verify, a mount or a session"


def _inode(text: str) -> tuple[int, int, int]:
    major, minor, inode = text.split(":")
    return int(major, 16), int(minor, 16), int(inode)


def _command(pid: int) -> str | None:
    """Return the command of a process without its interpreter; None if it has ended or is not seen."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return None
    start = next((place for place, word in enumerate(words) if Path(word).name == "vbackup"), 0)
    return " ".join(["vbackup", *words[start + 1 :]] if start else words) or None


def _locked(directory: Path, stop: Stop | None, deadline: float) -> int:
    """Return a descriptor with a shared lock on the directory that has this name now."""
    while True:
        try:
            fd = _opened(directory)
        except OSError as err:
            raise ChainError(f"The backup in {directory} cannot be read: {err.strerror or err}.") from err
        try:
            if _has_locked(fd, fcntl.LOCK_SH):
                if _is_still(directory, fd):
                    return fd
            elif time.monotonic() > deadline:
                raise BusyError(
                    f"The backup in {directory} is being merged with another one; run the same command again when that"
                    " has ended."
                )
            else:
                time.sleep(TICK_S)
            if stop is not None:
                stop.check()
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def allow_files(count: int) -> int | None:
    """Raise the soft limit of open files to this number and some more.

    Returns how many the hard limit allows, None for any. The soft limit is 1024 for the sake of select(2), and a
    verify of all backups of a domain can hold more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES if hard == resource.RLIM_INFINITY else min(hard, count + _OTHER_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return None if hard == resource.RLIM_INFINITY else hard


def _opened(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _has_locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as err:
        if err.errno not in _NO_LOCKS:
            raise
    return True


def _is_still(directory: Path, fd: int) -> bool:
    """Return False if another directory has got the name, or none has it."""
    try:
        return os.path.samestat(directory.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False
