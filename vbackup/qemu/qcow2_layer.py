"""Read what one qcow2 image itself holds, as the guest sees it, without QEMU and without its backing file.

The tables of the image say where each cluster is; clusters of data are read at their place, compressed ones are
decompressed. Images of a repository have clusters of 64 KiB, and so have those that qemu-img makes for a restore; one
L2 table then maps 512 MiB. tests/contract/test_qcow2_layer.py compares the result with QEMU's own.
Format: QEMU's docs/interop/qcow2.rst.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vbackup.errors import ChainError
from vbackup.files import open_regular
from vbackup.model import CLUSTER_BYTES
from vbackup.qemu import qcow2

#: Number of clusters that one L2 table maps.
TABLE_CLUSTERS = CLUSTER_BYTES // 8
TABLE_BYTES = TABLE_CLUSTERS * CLUSTER_BYTES
#: Version 3 header: L1 entries and offset, refcount table offset and clusters; features; refcount order; compression.
_TABLES = struct.Struct(">IQQI")
_TABLES_OFFSET = 36
_INCOMPATIBLE_OFFSET, _REFCOUNT_ORDER_OFFSET, _LENGTH_OFFSET, _COMPRESSION_OFFSET = 72, 96, 100, 104
_LENGTH_V2 = 72
#: The features that change where data is; any other one, or the mark that the image is corrupt, is refused.
_DIRTY, _COMPRESSION_TYPE = 1 << 0, 1 << 3
_ZLIB, _ZSTD = 0, 1
#: Bits of an L2 entry.
_COMPRESSED, _ZERO = 1 << 62, 1 << 0
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED_OFFSET_BITS = 62 - (16 - 8)
_SECTOR_BYTES = 512
#: A raw deflate stream with a window of 4 KiB (qcow2_zlib_decompress in block/qcow2-threads.c).
_WINDOW_BITS = -12
#: Images of 64 TiB have tables of 1 MiB in the header's reach; a larger number is damage.
_MAX_TABLE_BYTES = 64 * 1024 * 1024

Decompress = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Extent:
    """Clusters that follow each other on the disk, and in the file if they are data that is not compressed."""

    start: int  #: number of the first cluster in its table
    clusters: int
    offset: int | None  #: of the first in the file, in bytes; None: they read as zeros
    compressed_bytes: int | None = None  #: of one compressed cluster


class Qcow2Layer:
    """An open image. A context manager; its methods can be called in several threads.

    Raises ChainError, also in its methods, if the image cannot be read, is damaged, or is of a kind that vbackup never
    writes.
    """

    def __init__(self, path: Path, *, opened: Callable[[Path], int] = open_regular) -> None:
        """``opened`` returns a descriptor of the image; it is called twice."""
        self.path = path
        self.header = qcow2.header(path, opened=opened)
        try:
            self._fd = opened(path)
        except OSError as err:
            raise ChainError(f"The image {path} cannot be read: {err.strerror or err}.") from err
        try:
            self._read_header()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Qcow2Layer:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def virtual_size_bytes(self) -> int:
        """Size of the disk."""
        return self.header.virtual_size_bytes

    def tables(self) -> Iterator[int]:
        """Yield the numbers of the L2 tables that the image has, in ascending order."""
        return (number for number, entry in enumerate(self._l1) if entry & _OFFSET_MASK)

    def extents(self, number: int) -> list[Extent]:
        """Return what the L2 table holds, in ascending order; clusters of which the image holds nothing are missing."""
        extents: list[Extent] = []
        if number >= len(self._l1) or not self._l1[number] & _OFFSET_MASK:
            return extents
        #: The run of clusters that is being followed, its first entry, and the entry that would continue it.
        start, first, following, step = -1, 0, 0, 0
        for cluster, entry in enumerate(self._l2(number)):
            if entry == following:
                following += step
                continue
            if start >= 0:
                extents.append(self._run(start, cluster, first))
            start, following, step = -1, 0, 0
            if not entry:
                continue
            if entry & _COMPRESSED:
                extents.append(self._compressed(cluster, entry))
                continue
            start, first = cluster, entry
            step = 0 if entry & _ZERO else CLUSTER_BYTES
            following = entry + step
        if start >= 0:
            extents.append(self._run(start, TABLE_CLUSTERS, first))
        return extents

    def read(self, extent: Extent, first: int, clusters: int, buffer: bytearray | None = None) -> memoryview:
        """Return the content of some clusters of an extent of data, from its cluster ``first`` on.

        It can be in ``buffer``, which is large enough: new memory costs more than to read from the page cache.
        """
        assert extent.offset is not None
        if extent.compressed_bytes is not None:
            return memoryview(self._decompress(self._pread(extent.offset, extent.compressed_bytes, is_padded=True)))
        offset, length = extent.offset + first * CLUSTER_BYTES, clusters * CLUSTER_BYTES
        if buffer is None:
            return memoryview(self._pread(offset, length))
        data = memoryview(buffer)[:length]
        try:
            is_whole = read_into(self._fd, data, offset) == length
        except OSError as err:
            raise ChainError(f"The image {self.path} cannot be read: {err.strerror or err}.") from err
        if not is_whole:
            raise self._damaged("a table names a place after its end")
        return data

    def structure(self) -> Iterator[bytes]:
        """Yield everything in the file that says where data is: header, L1 and L2 tables, refcount table and blocks."""
        yield self._pread(0, min(CLUSTER_BYTES, os.fstat(self._fd).st_size))
        yield self._l1_bytes
        for number in self.tables():
            yield self._pread(self._l1[number] & _OFFSET_MASK, CLUSTER_BYTES)
        table = self._pread(self._refcount_offset, self._refcount_clusters * CLUSTER_BYTES)
        yield table
        for entry in _numbers(table):
            if entry & ~0x1FF:
                yield self._pread(entry & ~0x1FF, CLUSTER_BYTES)

    def _read_header(self) -> None:
        data = self._pread(0, 112, is_padded=True)
        version, cluster_bits = struct.unpack_from(">I", data, 4)[0], struct.unpack_from(">I", data, 20)[0]
        l1_entries, l1_offset, self._refcount_offset, self._refcount_clusters = _TABLES.unpack_from(
            data, _TABLES_OFFSET
        )
        features, compression = 0, _ZLIB
        if version > 2:  # noqa: PLR2004 - the versions of the format are 2 and 3
            (features,) = struct.unpack_from(">Q", data, _INCOMPATIBLE_OFFSET)
            (length,) = struct.unpack_from(">I", data, _LENGTH_OFFSET)
            compression = data[_COMPRESSION_OFFSET] if length > _COMPRESSION_OFFSET else _ZLIB
        self._has_zeros = version > 2  # noqa: PLR2004
        if 1 << cluster_bits != CLUSTER_BYTES or features & ~(_DIRTY | _COMPRESSION_TYPE) or self.header.encrypted:
            raise self._damaged("it has features that vbackup never writes, or it was marked as corrupt")
        self._decompress = self._decompressor(compression)
        tables = -(-self.virtual_size_bytes // TABLE_BYTES)
        if l1_entries < tables or l1_entries * 8 > _MAX_TABLE_BYTES or self._refcount_clusters > _MAX_TABLE_BYTES >> 16:
            raise self._damaged("its header does not fit its size")
        self._l1_bytes = self._pread(l1_offset, l1_entries * 8) if l1_entries else b""
        self._l1 = _numbers(self._l1_bytes)
        if any(entry & _OFFSET_MASK for entry in self._l1[tables:]):
            raise self._damaged("it holds data beyond the end of the disk")

    def _decompressor(self, compression: int) -> Decompress:
        if compression == _ZLIB:
            return self._inflate
        if compression == _ZSTD:
            return self._zstd
        raise self._damaged(f"its compression {compression} is unknown")

    def _inflate(self, data: bytes) -> bytes:
        try:
            content = zlib.decompressobj(_WINDOW_BITS).decompress(data, CLUSTER_BYTES)
        except zlib.error as err:
            raise self._damaged(f"a compressed cluster cannot be read: {err}") from err
        return self._whole(content)

    def _zstd(self, data: bytes) -> bytes:
        import zstandard  # only for compressed images

        try:
            # A new one for each cluster: they must not be shared by threads, and cost nothing.
            content = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        except zstandard.ZstdError as err:
            raise self._damaged(f"a compressed cluster cannot be read: {err}") from err
        return self._whole(content)

    def _whole(self, content: bytes) -> bytes:
        if len(content) != CLUSTER_BYTES:
            raise self._damaged(f"a compressed cluster has {len(content)} bytes")
        return content

    def _l2(self, number: int) -> array[int]:
        return _numbers(self._pread(self._l1[number] & _OFFSET_MASK, CLUSTER_BYTES))

    def _compressed(self, cluster: int, entry: int) -> Extent:
        offset = entry & ((1 << _COMPRESSED_OFFSET_BITS) - 1)
        sectors = (entry >> _COMPRESSED_OFFSET_BITS & 0xFF) + 1
        return Extent(cluster, 1, offset, sectors * _SECTOR_BYTES - offset % _SECTOR_BYTES)

    def _run(self, start: int, end: int, entry: int) -> Extent:
        """Return the clusters from ``start`` up to ``end``, of which the first has this L2 entry."""
        if entry & _ZERO and self._has_zeros:
            return Extent(start, end - start, None)
        offset = entry & _OFFSET_MASK
        if not offset or offset % CLUSTER_BYTES:
            raise self._damaged("a table names a place that is not the begin of a cluster")
        return Extent(start, end - start, offset)

    def _pread(self, offset: int, length: int, *, is_padded: bool = False) -> bytes:
        """Return these bytes; ``is_padded``: the file may end earlier, as after a last compressed cluster."""
        pieces = []
        missing = length
        try:
            while missing and (piece := os.pread(self._fd, missing, offset + length - missing)):
                pieces.append(piece)
                missing -= len(piece)
        except OSError as err:
            raise ChainError(f"The image {self.path} cannot be read: {err.strerror or err}.") from err
        if missing == length or (missing and not is_padded):
            raise self._damaged("a table names a place after its end")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _damaged(self, reason: str) -> ChainError:
        return ChainError(f"The image {self.path} is damaged: {reason}.")


def read_into(fd: int, data: memoryview, offset: int) -> int:
    """Fill ``data`` with what a file has from that offset on; return how many bytes it has. Raises OSError."""
    done = 0
    while done < len(data) and (count := os.preadv(fd, [data[done:]], offset + done)):
        done += count
    return done


def _numbers(data: bytes) -> array[int]:
    numbers = array("Q", data[: len(data) // 8 * 8])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
