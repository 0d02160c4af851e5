"""Lock image files as QEMU does, so that no QEMU opens them meanwhile, and find out whether one has.

QEMU locks single bytes of an image file (raw_apply_lock_bytes and raw_check_lock_bytes in its block/file-posix.c): one
for each kind of access that it wants, and one for each kind that it grants nobody else. Where locks do not work, as on
some network filesystems, QEMU has none either.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vbackup import process
from vbackup.errors import BusyError
from vbackup.files import storage_errors

#: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE, and the number of bits of BLK_PERM_ALL.
_WANTED, _DENIED, _KINDS = 100, 200, 5
_FLOCK = struct.Struct("@hhqqi4x")  #: struct flock with 64 bits
_NOT_LOCKABLE = frozenset((errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS))


@contextmanager
def held(paths: Sequence[Path]) -> Iterator[None]:
    """Keep every QEMU from opening these files during the block, whatever they are called then.

    Raises BusyError if a program that locks as QEMU does has one of them open, StorageError.
    """
    with ExitStack() as stack:
        for path in paths:
            with storage_errors(f"lock {path}"):
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                try:
                    _set(fd)
                    is_free = _is_free(fd)
                except OSError as err:
                    if err.errno not in _NOT_LOCKABLE:
                        raise
                    continue
            if not is_free:
                users = process.other_users_of(str(path))
                raise BusyError(
                    f"The image {path} is open in {users[0] if users else 'another process'}; nothing was written. Run"
                    " the same command again when it is not."
                )
        yield


def _set(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _DENIED, _KINDS, 0))


def _is_free(fd: int) -> bool:
    """Return False if somebody else accesses the file."""
    reply = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WANTED, _KINDS, 0))
    kind: int = _FLOCK.unpack(reply)[0]
    return kind == fcntl.F_UNLCK
