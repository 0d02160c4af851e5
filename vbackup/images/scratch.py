"""Temporary directories for sockets and for what other programs write, which do not stay behind a run that was killed.

Each is locked (flock(2)) while it is used, and the kernel takes the lock away when the process ends, however that
happens. So whoever makes the next one can tell which of the others nobody uses, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup.files import storage_errors

_PREFIX = "vbackup-scratch-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
#: More than this in front of it, and the path of a socket is too long for Linux (sockaddr_un).
_MAX_DIRECTORY_BYTES = 60


def place_of_sockets() -> Path:
    """Return a directory for temporary ones, with a short path."""
    usual = tempfile.gettempdir()
    return Path(usual if len(os.fsencode(usual)) <= _MAX_DIRECTORY_BYTES else "/tmp")  # noqa: S108 - mkdtemp is safe there


@contextmanager
def directory(parent: Path) -> Iterator[Path]:
    """Yield a new directory in ``parent`` that only this user can enter; it is removed at the end.

    Those of this user that a killed run has left there are removed first. Raises StorageError.
    """
    with storage_errors(f"make a directory in {parent}"):
        _sweep(parent)
        path, fd = _made(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


def _made(parent: Path) -> tuple[Path, int]:
    """Return a new directory, and a descriptor of it that has the lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # without locks nobody can sweep either
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return path, fd
        os.close(fd)  # another run has swept it away before it was locked


def _sweep(parent: Path) -> None:
    with os.scandir(parent) as entries:
        found = [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
    for path in found:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # another user's, or just removed
            continue
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # it is used
        finally:
            os.close(fd)
