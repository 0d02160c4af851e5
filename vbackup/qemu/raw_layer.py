"""Read a raw image as vbackup.qemu.qcow2_layer reads a qcow2 one: where the file has data, and the data.

Where the file has a hole, it holds nothing. The filesystem tells (lseek with SEEK_DATA); one that has no account of
holes calls everything data. So does a block device, which may be larger than the disk that is on it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from vbackup.errors import ChainError
from vbackup.files import open_block_device, open_regular
from vbackup.model import CLUSTER_BYTES
from vbackup.qemu.qcow2_layer import TABLE_BYTES, Extent, read_into


class RawLayer:
    """An open raw image, in clusters of 64 KiB. A context manager; its methods can be called in several threads.

    Raises ChainError, also in its methods, if the file cannot be read.
    """

    def __init__(self, path: Path, *, device_bytes: int | None = None) -> None:
        """``device_bytes``: it is a block device, and this is the size of the disk that begins with it."""
        self.path = path
        self._is_device = device_bytes is not None
        try:
            self._fd = open_regular(path) if device_bytes is None else open_block_device(path)
        except OSError as err:
            raise self._unreadable(err) from err
        self.virtual_size_bytes = os.fstat(self._fd).st_size if device_bytes is None else device_bytes

    def __enter__(self) -> RawLayer:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def tables(self) -> Iterator[int]:
        """Yield the numbers of the parts of 512 MiB that have data, in ascending order."""
        at = 0
        while (start := self._seek(at, os.SEEK_DATA)) is not None:
            yield start // TABLE_BYTES
            at = (start // TABLE_BYTES + 1) * TABLE_BYTES

    def extents(self, number: int) -> list[Extent]:
        """Return the clusters with data in that part."""
        begin, end = number * TABLE_BYTES, min((number + 1) * TABLE_BYTES, self.virtual_size_bytes)
        extents: list[Extent] = []
        at, done = begin, 0
        while (data := self._seek(at, os.SEEK_DATA)) is not None and data < end:
            hole = self._seek(data, os.SEEK_HOLE)
            at = end if hole is None else hole
            first = max(done, (data - begin) // CLUSTER_BYTES)
            done = -(-(min(at, end) - begin) // CLUSTER_BYTES)
            if done > first:
                extents.append(Extent(first, done - first, begin + first * CLUSTER_BYTES))
        return extents

    def read(self, extent: Extent, first: int, clusters: int, buffer: bytearray | None = None) -> memoryview:
        """Return the content of some clusters of an extent, with zeros after the end of the file."""
        assert extent.offset is not None
        length = clusters * CLUSTER_BYTES
        data = memoryview(bytearray(length) if buffer is None else buffer)[:length]
        begin = extent.offset + first * CLUSTER_BYTES
        try:
            size_bytes = read_into(self._fd, data[: max(0, self.virtual_size_bytes - begin)], begin)
        except OSError as err:
            raise self._unreadable(err) from err
        data[size_bytes:] = bytes(length - size_bytes)
        return data

    def _seek(self, at: int, whence: int) -> int | None:
        """Return where data or a hole begins at that place or after it, None if none does."""
        if at >= self.virtual_size_bytes:
            return None
        if self._is_device:
            return at if whence == os.SEEK_DATA else None
        try:
            return os.lseek(self._fd, at, whence)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return None
            raise self._unreadable(err) from err

    def _unreadable(self, err: OSError) -> ChainError:
        return ChainError(f"The image {self.path} cannot be read: {err.strerror or err}.")
