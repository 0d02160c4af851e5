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

from vbackup.errors import ChainError, MissingPackageError
from vbackup.files import open_regular
from vbackup.model import CLUSTER_BYTES
from vbackup.qemu import qcow2

#: Number of clusters that one L2 table maps.
TABLE_CLUSTERS = CLUSTER_BYTES // 8
#: Entries of an L2 table that are looked at together.
_PIECE_CLUSTERS = 64
_NOTHING = array("Q", [0] * _PIECE_CLUSTERS)
TABLE_BYTES = TABLE_CLUSTERS * CLUSTER_BYTES
#: Version 3 header: L1 entries and offset, refcount table offset and clusters; features; refcount order; compression.
_TABLES = struct.Struct(">IQQI")
_TABLES_OFFSET = 36
_INCOMPATIBLE_OFFSET, _REFCOUNT_ORDER_OFFSET, _LENGTH_OFFSET, _COMPRESSION_OFFSET = 72, 96, 100, 104
_HEADER_V3_BYTES = 112
#: The features that do not change where data is; any other one is refused.
_DIRTY, _CORRUPT, _COMPRESSION_TYPE = 1 << 0, 1 << 1, 1 << 3
_ZLIB, _ZSTD = 0, 1
#: Bits of an L2 entry.
_COMPRESSED, _ZERO = 1 << 62, 1 << 0
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED_OFFSET_BITS = 62 - (16 - 8)
_SECTOR_BYTES = 512
#: A raw deflate stream with a window of 4 KiB (qcow2_zlib_decompress in block/qcow2-threads.c).
_WINDOW_BITS = -12
#: What a zstd frame may make its reader allocate; one of a cluster needs that much itself.
_MAX_WINDOW_BYTES = 8 * 1024 * 1024
#: QEMU's limits (QCOW_MAX_L1_SIZE and QCOW_MAX_REFTABLE_SIZE in block/qcow2.h).
_MAX_L1_BYTES, _MAX_REFCOUNT_TABLE_BYTES = 32 * 1024 * 1024, 8 * 1024 * 1024
_REFCOUNT_OFFSET_MASK = 0xFFFF_FFFF_FFFF_FE00
_HEADER_BYTES = CLUSTER_BYTES  #: header, extensions and names are in the first cluster

Decompress = Callable[[bytes], bytes]

_REMEDY = "Restore the file from a copy of the repository, or restore an older backup."


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
    writes; MissingPackageError if it is compressed with zstd, and this Python cannot read that.
    """

    def __init__(self, path: Path, *, opened: Callable[[Path], int] = open_regular) -> None:
        """``opened`` returns a descriptor of the image."""
        self.path = path
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
        table = self._l2(number)
        for begin in range(0, TABLE_CLUSTERS, _PIECE_CLUSTERS):
            piece = table[begin : begin + _PIECE_CLUSTERS]
            if start < 0 and piece == _NOTHING:  # most of an increment
                continue
            for cluster, entry in enumerate(piece, begin):
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
            packed = self._pread(extent.offset, extent.compressed_bytes, may_lack=extent.compressed_bytes - 1)
            return memoryview(self._decompress(packed))
        offset, length = extent.offset + first * CLUSTER_BYTES, clusters * CLUSTER_BYTES
        data = memoryview(bytearray(length) if buffer is None else buffer)[:length]
        try:
            done = read_into(self._fd, data, offset)
        except OverflowError:
            raise self._damaged("a table names a place that no file can have") from None
        except OSError as err:
            raise ChainError(f"The image {self.path} cannot be read: {err.strerror or err}. {_REMEDY}") from err
        # The last cluster of a file need not be there whole. QEMU, too, reads zeros after the end of the file.
        if length - done >= CLUSTER_BYTES:
            raise self._damaged("a table names a place after its end")
        data[done:] = bytes(length - done)
        return data

    def packed(self, content: bytes) -> Iterator[bytes]:
        """Yield a cluster as this image would have it compressed, in several ways: it may have to fit into a place."""
        if self._is_zstd:
            import zstandard

            for level in (3, 9, 19, 22):
                yield zstandard.ZstdCompressor(level=level).compress(content)
        else:
            for level in (-1, 9):
                deflate = zlib.compressobj(level, wbits=_WINDOW_BITS, memLevel=9)
                yield deflate.compress(content) + deflate.flush()

    def structure(self) -> Iterator[bytes]:
        """Yield everything in the file that says where data is: header, L1 and L2 tables, refcount table and blocks."""
        yield self._pread(0, CLUSTER_BYTES, may_lack=CLUSTER_BYTES)
        yield self._l1_bytes
        for number in self.tables():
            yield self._pread(self._l1[number] & _OFFSET_MASK, CLUSTER_BYTES)
        table = self._pread(self._refcount_offset, self._refcount_clusters * CLUSTER_BYTES)
        yield table
        blocks = [entry & _REFCOUNT_OFFSET_MASK for entry in _numbers(table) if entry & _REFCOUNT_OFFSET_MASK]
        self._refuse_shared(blocks)
        for offset in blocks:
            yield self._pread(offset, CLUSTER_BYTES)

    def _read_header(self) -> None:
        data = self._pread(0, _HEADER_BYTES, may_lack=_HEADER_BYTES)
        self.header = qcow2.header_in(data, self.path)
        data = data[:_HEADER_V3_BYTES].ljust(_HEADER_V3_BYTES, b"\0")
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
        if features & _CORRUPT:
            raise self._damaged("QEMU found it to be corrupt and marked it so")
        if 1 << cluster_bits != CLUSTER_BYTES or features & ~(_DIRTY | _COMPRESSION_TYPE) or self.header.encrypted:
            raise ChainError(
                f"The image {self.path} has features that vbackup never writes (clusters of {1 << cluster_bits} bytes,"
                f" features {features:#x}{', encrypted' if self.header.encrypted else ''}), so it was replaced after"
                f" the backup. {_REMEDY}"
            )
        self._is_zstd = compression == _ZSTD
        self._decompress = self._decompressor(compression)
        tables = -(-self.virtual_size_bytes // TABLE_BYTES)
        if (
            not tables <= l1_entries <= _MAX_L1_BYTES // 8
            or not 0 < self._refcount_clusters <= _MAX_REFCOUNT_TABLE_BYTES // CLUSTER_BYTES
        ):
            raise self._damaged("its header does not fit its size")
        self._l1_bytes = self._pread(l1_offset, l1_entries * 8) if l1_entries else b""
        self._l1 = _numbers(self._l1_bytes)
        if any(entry & _OFFSET_MASK for entry in self._l1[tables:]):
            raise self._damaged("it holds data beyond the end of the disk")
        self._refuse_shared([self._l1[number] & _OFFSET_MASK for number in self.tables()])

    def _refuse_shared(self, offsets: list[int]) -> None:
        """Raise ChainError if two tables are one: reading all that such an image claims to hold could take for ever."""
        if len({*offsets}) != len(offsets) or any(offset % CLUSTER_BYTES for offset in offsets):
            raise self._damaged("its tables overlap")

    def _decompressor(self, compression: int) -> Decompress:
        if compression == _ZLIB:
            return self._inflate
        if compression == _ZSTD:
            # Asked for here, not at the first compressed cluster: whoever reads on after damage would take it for that.
            try:
                import zstandard  # noqa: F401 - only for compressed images
            except ImportError as err:
                raise MissingPackageError(
                    "zstandard", f"The image {self.path} is compressed with zstd", debian="python3-zstandard"
                ) from err
            return self._zstd
        raise self._damaged(f"its compression {compression} is unknown")

    def _inflate(self, data: bytes) -> bytes:
        try:
            content = zlib.decompressobj(_WINDOW_BITS).decompress(data, CLUSTER_BYTES)
        except zlib.error as err:
            raise self._damaged(f"a compressed cluster cannot be read: {err}") from err
        return self._whole(content)

    def _zstd(self, data: bytes) -> bytes:
        import zstandard

        try:
            # A new one for each cluster: they must not be shared by threads, and cost nothing. A reader gives no more
            # than it is asked for, whatever the frame says: 128 KiB can unpack to gigabytes.
            with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(data) as reader:
                content = reader.read(CLUSTER_BYTES)
        except (zstandard.ZstdError, MemoryError) as err:
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
        if entry & _ZERO:
            if not self._has_zeros:  # QEMU: "Preallocated zero cluster ... in a pre-v3 image"
                raise self._damaged("a table has a cluster of zeros, which its version of the format does not have")
            return Extent(start, end - start, None)
        offset = entry & _OFFSET_MASK
        if not offset or offset % CLUSTER_BYTES:
            raise self._damaged("a table names a place that is not the begin of a cluster")
        return Extent(start, end - start, offset)

    def _pread(self, offset: int, length: int, *, may_lack: int = 0) -> bytes:
        """Return these bytes; up to ``may_lack`` of them can be missing, because the file ends there."""
        pieces = []
        missing = length
        try:
            while missing and (piece := os.pread(self._fd, missing, offset + length - missing)):
                pieces.append(piece)
                missing -= len(piece)
        except OverflowError:
            raise self._damaged("a table names a place that no file can have") from None
        except OSError as err:
            raise ChainError(f"The image {self.path} cannot be read: {err.strerror or err}. {_REMEDY}") from err
        if missing > may_lack:
            raise self._damaged("a table names a place after its end")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _damaged(self, reason: str) -> ChainError:
        return ChainError(f"The image {self.path} is damaged: {reason}. {_REMEDY}")


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
