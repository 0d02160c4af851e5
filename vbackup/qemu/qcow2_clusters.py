"""Find the parts of a qcow2 file that decide what the guest reads from it, without QEMU.

These are members of the header, the tables L1 and L2, and the clusters with data. The rest, such as bitmaps and
refcounts, QEMU and vbackup change without a change of the guest's data.
Format: QEMU's docs/interop/qcow2.rst.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from vbackup.qemu.qcow2 import MAGIC, extensions

_HEADER = struct.Struct(">4sIQIIQIIQ")  #: up to l1_table_offset; 48 bytes
_CLUSTER_BITS = range(9, 22)
_DIRTY, _DATA_FILE, _COMPRESSION_TYPE, _EXTENDED_L2 = 1 << 0, 1 << 2, 1 << 3, 1 << 4
#: The incompatible features whose meaning is known here; not "corrupt" (bit 1).
_KNOWN = _DIRTY | _DATA_FILE | _COMPRESSION_TYPE | _EXTENDED_L2
#: Extensions of the header that matter: format of the backing file, header of the encryption, data file.
_BACKING_FORMAT, _ENCRYPTION, _DATA_FILE_NAME = 0xE2792ACA, 0x0537BE77, 0x44415441
_OFFSET_MASK, _COMPRESSED = 0x00FFFFFFFFFFFE00, 1 << 62
#: QEMU's limit of the L1 table (QCOW_MAX_L1_SIZE), and as much of a file as this needs memory for: 16 TiB with clusters
#: of 64 KiB.
_MAX_L1_BYTES, _MAX_CLUSTERS = 32 * 1024 * 1024, 1 << 28
_SECTOR = 512


@dataclass(frozen=True)
class GuestClusters:
    """What decides about the guest's data."""

    header: bytes  #: those members that matter
    cluster_bytes: int
    marks: bytearray  #: one byte for each cluster of the file, 1 if it belongs to a table or to the data


def find(fd: int, size_bytes: int) -> GuestClusters | None:
    """Return the clusters of an open qcow2 image, None if it is not understood, or is damaged. Raises OSError."""
    try:
        return _find(fd, size_bytes)
    except (struct.error, ValueError, IndexError):
        return None


def _find(fd: int, size_bytes: int) -> GuestClusters:
    data = os.pread(fd, 1 << _CLUSTER_BITS[-1], 0)
    magic, version, backing_offset, _length, cluster_bits, _size, encryption, l1_entries, l1_offset = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC or version not in (2, 3) or cluster_bits not in _CLUSTER_BITS:
        raise ValueError("no header of qcow2")
    incompatible, header_length = struct.unpack_from(">Q20xI", data, 72) if version == 3 else (0, 72)  # noqa: PLR2004
    if incompatible & ~_KNOWN:
        raise ValueError("an unknown feature, or corrupt")
    data = data[: 1 << cluster_bits]
    found = dict(extensions(data, header_length, backing_offset or len(data)))
    compression = data[104] if incompatible & _COMPRESSION_TYPE else 0
    kept = [found.get(kind, b"") for kind in (_BACKING_FORMAT, _ENCRYPTION, _DATA_FILE_NAME)]
    members = data[20:48]  # cluster bits, size, encryption, size and offset of L1
    header = struct.pack(">IQB?", version, incompatible & ~_DIRTY, compression, backing_offset != 0) + b"".join(
        [members, *(struct.pack(">I", len(one)) + one for one in kept)]
    )
    marks = _Marks(size_bytes, cluster_bits)
    if encryption and found.get(_ENCRYPTION):
        marks.add(*struct.unpack(">QQ", found[_ENCRYPTION]))
    if l1_entries * 8 > _MAX_L1_BYTES:
        raise ValueError("a table L1 larger than QEMU's limit")
    marks.add(l1_offset, l1_entries * 8)
    for table in _offsets(_entries(os.pread(fd, l1_entries * 8, l1_offset))):
        marks.add(table, 1 << cluster_bits)
        entries = _entries(os.pread(fd, 1 << cluster_bits, table))
        if not incompatible & _DATA_FILE:
            marks.add_data(entries[::2] if incompatible & _EXTENDED_L2 else entries)
    return GuestClusters(header, 1 << cluster_bits, marks.bytes)


class _Marks:
    """The clusters that were found so far. What is beyond the end of the file reads as zeros."""

    def __init__(self, size_bytes: int, cluster_bits: int) -> None:
        self._bits = cluster_bits
        self._clusters = -(-size_bytes >> cluster_bits)
        if self._clusters > _MAX_CLUSTERS:
            raise ValueError("too many clusters")
        self.bytes = bytearray(self._clusters)

    def add(self, offset: int, length: int) -> None:
        """Mark what these bytes touch."""
        if length <= 0:
            return
        first, end = offset >> self._bits, min((offset + length - 1 >> self._bits) + 1, self._clusters)
        if first < end:
            self.bytes[first:end] = b"\1" * (end - first)

    def add_data(self, entries: array[int]) -> None:
        """Mark what the entries of an L2 table point to."""
        size_shift = 62 - (self._bits - 8)
        size_mask, offset_mask = (1 << (self._bits - 8)) - 1, (1 << size_shift) - 1
        misalignment = (1 << self._bits) - 1
        for entry in entries:
            if entry & _COMPRESSED:
                offset = entry & offset_mask
                sectors = (entry >> size_shift & size_mask) + 1
                self.add(offset, sectors * _SECTOR - offset % _SECTOR)
            elif offset := entry & _OFFSET_MASK:
                if offset & misalignment:
                    raise ValueError("data that does not begin with a cluster")
                if offset >> self._bits < self._clusters:
                    self.bytes[offset >> self._bits] = 1


def _entries(data: bytes) -> array[int]:
    """Return the numbers of a table, whose end may be beyond that of the file."""
    numbers = array("Q", data[: len(data) // 8 * 8])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _offsets(l1: array[int]) -> Iterator[int]:
    return (entry & _OFFSET_MASK for entry in l1 if entry & _OFFSET_MASK)
