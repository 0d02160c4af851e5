"""Read a dirty bitmap that QEMU has stored in a qcow2 image, when the image is closed again.

QEMU has no command that tells which bits are set. But it stores a persistent bitmap in its image, where the bits can be
read (docs/interop/qcow2.rst, "Bitmaps extension"); vbackup.qemu.qcow2_bitmap is the way in.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterator

from vbackup.errors import MalformedError

_CLUSTER_BITS_OFFSET, _SIZE_OFFSET, _AUTOCLEAR_OFFSET, _LENGTH_OFFSET = 20, 24, 88, 100
_MIN_LENGTH, _MAX_HEADER_BYTES = 104, 64 * 1024
_BITMAPS_EXTENSION = 0x23852875
_UP_TO_DATE = 1  #: in autoclear_features
_EXTENSION = struct.Struct(">IIQQ")  # number of bitmaps, reserved, size and offset of the directory
_ENTRY = struct.Struct(">QIIBBHI")  # table offset and entries, flags, type, granularity, length of name and extra data
_IN_USE = 1
_DIRTY_BITMAP = 1
_OFFSET_MASK, _ALL_ONES = 0x00FF_FFFF_FFFF_FE00, 1
#: No image of vbackup's has larger ones: a bitmap of 1 PiB has a table of 16 KiB.
_MAX_TABLE_BYTES = 1024 * 1024


class StoredBitmap:
    """A bitmap in an image. Raises MalformedError, also in its methods, if it is not there as QEMU stores it."""

    def __init__(self, fd: int, name: str) -> None:
        """``fd`` has to stay open, and nobody may have the image open for writing."""
        self._fd, self._name = fd, name
        header = self._pread(0, _MIN_LENGTH)
        self._cluster_bytes = 1 << struct.unpack_from(">I", header, _CLUSTER_BITS_OFFSET)[0]
        self._size_bytes: int
        (self._size_bytes,) = struct.unpack_from(">Q", header, _SIZE_OFFSET)
        (autoclear,) = struct.unpack_from(">Q", header, _AUTOCLEAR_OFFSET)
        if not autoclear & _UP_TO_DATE:
            raise self._missing("QEMU has not stored it")
        for table_offset, entries, flags, kind, granularity_bits, found in self._directory():
            if found == name.encode():
                if flags & _IN_USE or kind != _DIRTY_BITMAP or entries * 8 > _MAX_TABLE_BYTES:
                    raise self._missing("QEMU has not stored all of it")
                self.granularity_bytes = 1 << granularity_bits
                self._table = _numbers(self._pread(table_offset, entries * 8))
                return
        raise self._missing("it is not in the image")

    def mask(self, first: int, bits: int) -> int:
        """Return some of the bits, from number ``first`` on, as an integer: bit n is bit ``first`` + n of the bitmap.

        Both have to be multiples of 8. Bits beyond the end of the disk are 0.
        """
        data = bytearray()
        start, end = first // 8, (first + bits) // 8
        while start < end:
            number, offset = divmod(start, self._cluster_bytes)
            length = min(end - start, self._cluster_bytes - offset)
            data += self._bits(number, offset, length)
            start += length
        granules = -(-self._size_bytes // self.granularity_bytes)
        return int.from_bytes(data, "little") & ((1 << max(0, min(bits, granules - first))) - 1)

    def _bits(self, number: int, offset: int, length: int) -> bytes:
        entry = self._table[number] if number < len(self._table) else 0
        place = entry & _OFFSET_MASK
        if place:
            return self._pread(place + offset, length)
        return (b"\xff" if entry & _ALL_ONES else b"\0") * length

    def _directory(self) -> Iterator[tuple[int, int, int, int, int, bytes]]:
        count, directory_bytes, offset = self._extension()
        directory = self._pread(offset, directory_bytes)
        place = 0
        for _ in range(count):
            if place + _ENTRY.size > len(directory):
                raise self._missing("the directory of bitmaps is too short")
            table_offset, entries, flags, kind, bits, name_bytes, extra_bytes = _ENTRY.unpack_from(directory, place)
            begin = place + _ENTRY.size + extra_bytes
            yield table_offset, entries, flags, kind, bits, directory[begin : begin + name_bytes]
            place += (_ENTRY.size + extra_bytes + name_bytes + 7) // 8 * 8

    def _extension(self) -> tuple[int, int, int]:
        """Return number of bitmaps, and size and offset of their directory, from the header extension."""
        header = os.pread(self._fd, _MAX_HEADER_BYTES, 0)
        (place,) = struct.unpack_from(">I", header, _LENGTH_OFFSET)
        while place + 8 + _EXTENSION.size <= len(header):
            kind, length = struct.unpack_from(">II", header, place)
            if kind == _BITMAPS_EXTENSION:
                count, _, directory_bytes, offset = _EXTENSION.unpack_from(header, place + 8)
                if directory_bytes > _MAX_TABLE_BYTES:
                    break
                return count, directory_bytes, offset
            if kind == 0:
                break
            place += 8 + (length + 7) // 8 * 8
        raise self._missing("the image has no directory of bitmaps")

    def _pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise self._missing("the image ends before it")
        return data

    def _missing(self, reason: str) -> MalformedError:
        return MalformedError(f"The bitmap {self._name} cannot be read: {reason}.")


def _numbers(data: bytes) -> array[int]:
    numbers = array("Q", data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
