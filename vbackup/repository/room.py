"""Find out how much room on storage files take, and how much of it they share with other files.

A file with several names (hard links) counts once. On a filesystem with reflinks, as XFS and btrfs, files can have data
in common: the kernel tells which extents are shared (FIEMAP), though not with whom.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vbackup.files import open_regular

#: FS_IOC_FIEMAP, struct fiemap and struct fiemap_extent (linux/fs.h, linux/fiemap.h).
_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ16xI12x")
_LAST, _SHARED = 0x1, 0x2000
_EXTENTS_AT_ONCE = 1024
_BLOCK_BYTES = 512  #: unit of st_blocks, whatever the filesystem
#: Filesystems with reflinks, by the names in /proc/self/mountinfo; on others nothing is shared, or nobody says so.
REFLINK_FILE_SYSTEMS = frozenset(("xfs", "btrfs", "bcachefs", "ocfs2"))


@dataclass(frozen=True)
class Room:
    """What files take on storage."""

    own_bytes: int = 0  #: allocated
    shared_bytes: int = 0  #: of these, what other files have too: removing the files does not free it

    def __add__(self, other: Room) -> Room:
        return Room(self.own_bytes + other.own_bytes, self.shared_bytes + other.shared_bytes)

    @property
    def exclusive_bytes(self) -> int:
        """What is freed if the files are removed."""
        return self.own_bytes - self.shared_bytes


def total(rooms: Iterable[Room]) -> Room:
    """Return the sum."""
    return sum(rooms, Room())


class Meter:
    """Measures files, each once. ``has_reflinks``: ask which extents are shared."""

    def __init__(self, *, has_reflinks: bool) -> None:
        self.has_reflinks = has_reflinks
        self._seen: set[tuple[int, int]] = set()

    def files(self, directory: Path) -> dict[str, Room]:
        """Return the room of each regular file below a directory, by its path in it.

        Symbolic links are not followed; what is gone or cannot be read by now is left out.
        """
        return {os.path.relpath(entry.path, directory): self._file(entry) for entry in _files(os.fspath(directory))}

    def total(self, directory: Path) -> Room:
        """Return the room of all regular files below a directory."""
        return total(self.files(directory).values())

    def _file(self, entry: os.DirEntry[str]) -> Room:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return Room()
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in self._seen:
                return Room()
            self._seen.add((status.st_dev, status.st_ino))
        own_bytes = status.st_blocks * _BLOCK_BYTES
        return Room(own_bytes, min(own_bytes, _shared_bytes(Path(entry.path))) if self.has_reflinks else 0)


def _files(directory: str) -> Iterator[os.DirEntry[str]]:
    for entry in _entries(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield entry


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _shared_bytes(path: Path) -> int:
    """Return how much of a file is in extents that other files have too; 0 if the kernel does not say."""
    try:
        fd = open_regular(path)
    except OSError:
        return 0
    try:
        return sum(length for length, flags in _extents(fd) if flags & _SHARED)
    except OSError:
        return 0
    finally:
        os.close(fd)


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield length and flags of each extent of a file. Raises OSError."""
    start = 0
    buffer = bytearray(_HEADER.size + _EXTENTS_AT_ONCE * _EXTENT.size)
    while True:
        _HEADER.pack_into(buffer, 0, start, (1 << 64) - 1 - start, 0, 0, _EXTENTS_AT_ONCE, 0)
        fcntl.ioctl(fd, _FIEMAP, buffer)
        mapped = _HEADER.unpack_from(buffer)[3]
        end = _HEADER.size + mapped * _EXTENT.size
        for logical, _physical, length, flags in _EXTENT.iter_unpack(buffer[_HEADER.size : end]):
            yield length, flags
            start = logical + length
            if flags & _LAST:
                return
        if not mapped:
            return
