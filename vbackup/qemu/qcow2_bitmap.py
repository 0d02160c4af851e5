"""Write a qcow2 image that contains nothing but a dirty bitmap, with chosen bits, for QEMU to merge.

Only writes set bits of a bitmap in QEMU. But QEMU loads those that an image has (docs/interop/qcow2.txt, "Bitmaps
extension"). With clusters of 2 MiB, all metadata of an image of 40 TiB fits into one cluster each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

from vbackup.model import GRANULARITY_BYTES

_CLUSTER_BITS = 21
_CLUSTER = 1 << _CLUSTER_BITS
#: Bytes of the disk that a cluster of bits covers: 1 TiB.
_COVERED_BYTES = _CLUSTER * 8 * GRANULARITY_BYTES
#: Where everything is, in clusters: the header is in the first.
_REFCOUNT_TABLE, _REFCOUNTS, _L1, _DIRECTORY, _TABLE, _BITS = range(1, 7)
_HAS_BITMAPS = 1  #: in autoclear_features: the bitmaps extension is up to date
_BITMAPS_EXTENSION = 0x23852875
_DIRTY_BITMAP, _GRANULARITY_BITS = 1, 16
_PIECE = 64 * 1024


def write(file: BinaryIO, size_bytes: int, *, name: str, extents: Iterable[tuple[int, int]]) -> None:
    """Write the image into an empty file.

    The bitmap ``name`` has a bit set for each granule that one of ``extents`` touches; these are (start, end) in bytes,
    in ascending order, within ``size_bytes``. QEMU loads the bitmap as a disabled one. Raises OSError.
    """
    bits_at: dict[int, int] = {}  # offset in the file by number of the cluster of bits
    for number, bits in _clusters_of_bits(extents):
        bits_at[number] = (_BITS + len(bits_at)) * _CLUSTER
        for piece in range(0, _CLUSTER, _PIECE):
            if any(bits[piece : piece + _PIECE]):
                file.seek(bits_at[number] + piece)
                file.write(bits[piece : piece + _PIECE])
    l1_entries = -(-size_bytes // (_CLUSTER * (_CLUSTER // 8)))
    table_entries = -(-size_bytes // _COVERED_BYTES)
    encoded = name.encode()
    entry = struct.pack(
        ">QIIBBHI", _TABLE * _CLUSTER, table_entries, 0, _DIRTY_BITMAP, _GRANULARITY_BITS, len(encoded), 0
    )
    entry += encoded + bytes(-(len(entry) + len(encoded)) % 8)
    _put(file, _REFCOUNT_TABLE, struct.pack(">Q", _REFCOUNTS * _CLUSTER))
    _put(file, _REFCOUNTS, struct.pack(">H", 1) * (_BITS + len(bits_at)))
    _put(file, _L1, bytes(8 * l1_entries))
    _put(file, _DIRECTORY, entry)
    _put(file, _TABLE, struct.pack(f">{table_entries}Q", *(bits_at.get(number, 0) for number in range(table_entries))))
    _put(file, 0, _header(size_bytes, l1_entries) + _extension(len(entry)))
    file.truncate((_BITS + len(bits_at)) * _CLUSTER)


def _header(size_bytes: int, l1_entries: int) -> bytes:
    """Return the header of version 3, without a backing file (docs/interop/qcow2.txt, "Header")."""
    header = struct.pack(">4sIQII", b"QFI\xfb", 3, 0, 0, _CLUSTER_BITS)
    header += struct.pack(">QIIQ", size_bytes, 0, l1_entries, _L1 * _CLUSTER)
    header += struct.pack(">QIIQ", _REFCOUNT_TABLE * _CLUSTER, 1, 0, 0)
    refcount_order, header_length = 4, 104
    return header + struct.pack(">QQQII", 0, 0, _HAS_BITMAPS, refcount_order, header_length)


def _extension(directory_bytes: int) -> bytes:
    content = struct.pack(">IIQQ", 1, 0, directory_bytes, _DIRECTORY * _CLUSTER)
    return struct.pack(">II", _BITMAPS_EXTENSION, len(content)) + content + bytes(8)


def _put(file: BinaryIO, cluster: int, data: bytes) -> None:
    file.seek(cluster * _CLUSTER)
    file.write(data)


def _clusters_of_bits(extents: Iterable[tuple[int, int]]) -> Iterable[tuple[int, bytearray]]:
    """Yield number and content of each cluster of bits in which one is set; the lowest bit of a byte comes first."""
    bits_of_cluster = _CLUSTER * 8
    number, bits = -1, bytearray()
    for start, end in extents:
        first, last = start // GRANULARITY_BYTES, (end - 1) // GRANULARITY_BYTES
        while first <= last:
            if first // bits_of_cluster != number:
                if number >= 0:
                    yield number, bits
                number, bits = first // bits_of_cluster, bytearray(_CLUSTER)
            begin = number * bits_of_cluster
            stop = min(last, begin + bits_of_cluster - 1)
            _set(bits, first - begin, stop - begin)
            first = stop + 1
    if number >= 0:
        yield number, bits


def _set(bits: bytearray, first: int, last: int) -> None:
    first_byte, last_byte = first >> 3, last >> 3
    if first_byte == last_byte:
        bits[first_byte] |= ((2 << (last - first)) - 1) << (first & 7)
        return
    bits[first_byte] |= 0xFF << (first & 7) & 0xFF
    bits[first_byte + 1 : last_byte] = b"\xff" * (last_byte - first_byte - 1)
    bits[last_byte] |= (2 << (last & 7)) - 1
