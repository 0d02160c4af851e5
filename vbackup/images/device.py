"""Block devices that a restore writes to: nobody else may use one meanwhile, and nothing of its old content stays.

The kernel gives a device to one holder at a time (O_EXCL): to a mounted filesystem, to the device mapper, LVM or RAID,
to swap, and so on, or to us. A disk counts as in use while one of its partitions is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shlex
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup import process
from vbackup.errors import BusyError, StorageError
from vbackup.files import open_block_device, storage_errors

#: linux/falloc.h. On a block device, a hole that is punched reads as zeros, or the kernel refuses (blkdev_fallocate).
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
#: How much is zeroed before somebody may say stop.
_PIECE_BYTES = 256 * 1024 * 1024
#: At least the size of a logical block: what the kernel zeroes begins and ends with one.
_ALIGNMENT_BYTES = 4096
#: linux/fs.h: the ioctl that says whether a block device is read-only.
_BLKROGET = 0x125E
_ZEROS = bytes(1024 * 1024)
#: Errors of a device, or of a kernel, that cannot do it: EBUSY if there are pages in its cache (translate_err and
#: handle_aiocb_write_zeroes in QEMU's block/file-posix.c).
_CANNOT = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EBUSY))


def is_block_device(path: Path) -> bool:
    """Return True if the path, which may be a symbolic link, leads to a block device."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


@contextmanager
def claimed(dev: str, path: Path, *, disk_bytes: int) -> Iterator[None]:
    """Hold a block device for a disk ``dev`` of that size during the block.

    Raises BusyError if somebody uses the device, StorageError if it is too small or read-only or may not be written.
    """
    with storage_errors(f"open {path}"):
        if _is_read_only(path):
            raise StorageError(
                f"Disk {dev}: {path} is read-only; nothing was written. Give another device, or, if it is the right"
                f" one, run: blockdev --setrw {shlex.quote(str(path))}."
            )
        try:
            fd = open_block_device(path, os.O_RDWR | os.O_EXCL)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            raise BusyError(
                f"Disk {dev}: {path} is in use: it, or a part of it, is mounted, swap, or part of LVM, RAID or another"
                f" device. 'lsblk {shlex.quote(str(path))}' shows what; nothing was written. Free it, or give another"
                " device."
            ) from err
    try:
        users = process.other_users_of(str(path))
        if users:
            raise BusyError(
                f"Disk {dev}: {path} is open in {users[0]}; nothing was written. Run the same command again when it is"
                " not, or give another device."
            )
        with storage_errors(f"read the size of {path}"):
            own_bytes = size_bytes(path)
        if own_bytes < disk_bytes:
            raise StorageError(
                f"Disk {dev}: {path} is too small: it has {own_bytes} bytes, and the disk has {disk_bytes}. Nothing"
                " was written; give a device that is as large."
            )
        yield
    finally:
        os.close(fd)


def _is_read_only(path: Path) -> bool:
    """Return True if the kernel lets nobody write to the block device. Raises OSError if it is none."""
    try:
        fd = open_block_device(path)
    except PermissionError:
        return False  # whoever may not even read it is told what is missing when it is opened for writing
    try:
        return bool(struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0])
    finally:
        os.close(fd)


def size_bytes(path: Path) -> int:
    """Return the size of a block device. Raises OSError."""
    fd = open_block_device(path)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def zero(path: Path, start_bytes: int, end_bytes: int, *, check: Callable[[], None]) -> None:
    """Make a part of a block device read as zeros. ``check`` is called now and then and may raise. Raises OSError."""
    fd = open_block_device(path, os.O_WRONLY)
    try:
        first = min(end_bytes, _rounded_up(start_bytes))
        last = max(first, end_bytes // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES)
        _write_zeros(fd, start_bytes, first)
        for begin in range(first, last, _PIECE_BYTES):
            check()
            end = min(last, begin + _PIECE_BYTES)
            if not any(_fallocate(fd, mode | _KEEP_SIZE, begin, end - begin) for mode in (_PUNCH_HOLE, _ZERO_RANGE)):
                _write_zeros(fd, begin, end)
        _write_zeros(fd, last, end_bytes)
    finally:
        os.close(fd)


def _rounded_up(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _write_zeros(fd: int, start_bytes: int, end_bytes: int) -> None:
    while start_bytes < end_bytes:
        start_bytes += os.pwrite(fd, _ZEROS[: end_bytes - start_bytes], start_bytes)


def _fallocate(fd: int, mode: int, start_bytes: int, length_bytes: int) -> bool:
    """Return False if the device cannot do it. Raises OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None:
        return False
    if call(fd, mode, ctypes.c_int64(start_bytes), ctypes.c_int64(length_bytes)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code))
