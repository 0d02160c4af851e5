"""Read the header of a qcow2 image without QEMU.

Even qemu-img info opens the data file that a header names (CVE-2024-4467), so images from a repository are checked here
first. The images of a disk are read here too, because qemu-img looks for a relative data file in its working directory.
Format: QEMU's docs/interop/qcow2.rst.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.files import open_regular
from vbackup.model import BlockDriver

#: The first bytes of every qcow2 image.
MAGIC = b"QFI\xfb"
_V2, _V3 = 2, 3
#: Version 2: magic, version, backing file (offset, size), cluster bits, size, encryption method; length of the header.
_FIXED = struct.Struct(">4sIQIIQI")
_LENGTH_V2 = 72
_SNAPSHOTS_AT = 60
#: Version 3 adds: incompatible features at offset 72, and the length of the header at offset 100.
_INCOMPATIBLE = struct.Struct(">Q")
_LENGTH_V3 = 104
_DATA_FILE_BIT = 1 << 2
_BACKING_FORMAT, _DATA_FILE = 0xE2792ACA, 0x44415441
#: QEMU's limits (qcow2_do_open in block/qcow2.c).
_CLUSTER_BITS = range(9, 22)
_MAX_NAME_BYTES = 1023


@dataclass(frozen=True)
class Header:
    """The members of a header that concern size, encryption and other files."""

    virtual_size_bytes: int
    backing_file: str | None
    backing_format: BlockDriver | None
    has_data_file: bool
    data_file: str | None  #: its name, if the header has one
    encrypted: bool
    snapshots: int = 0  #: number of internal snapshots

    @property
    def is_alone(self) -> bool:
        """True if QEMU opens no other file and needs no key for it."""
        return self.backing_file is None and not self.has_data_file and not self.encrypted


def header(path: Path, *, opened: Callable[[Path], int] = open_regular) -> Header:
    """Read the header of the image at ``path``; no other file is opened. ``opened`` returns a descriptor of it.

    Raises ChainError if it cannot be read, or is not a qcow2 header that QEMU accepts.
    """
    return _header(path, opened)


def header_of_source(path: Path) -> Header:
    """Read the header of a disk's image, which may be a block device or behind a symbolic link. As ``header``."""
    return _header(path, lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def _header(path: Path, opened: Callable[[Path], int]) -> Header:
    try:
        with os.fdopen(opened(path), "rb") as file:
            data = file.read(1 << _CLUSTER_BITS[-1])  # header, extensions and names are in the first cluster
    except OSError as err:
        raise ChainError(f"The image {path} cannot be read: {err.strerror or err}.") from err
    return header_in(data, path)


def header_in(data: bytes, path: Path) -> Header:
    """Return the header in the first bytes of the image at ``path``, at least one cluster. Raises ChainError."""
    try:
        return _parse(data)
    except (struct.error, ValueError) as err:
        raise ChainError(f"The image {path} cannot be read: it is not a qcow2 image ({err}).") from err


def _parse(data: bytes) -> Header:
    magic, version, name_offset, name_length, cluster_bits, size_bytes, encryption = _FIXED.unpack_from(data)
    if magic != MAGIC or version not in (_V2, _V3) or cluster_bits not in _CLUSTER_BITS:
        raise ValueError("the header is not a qcow2 header")
    data = data[: 1 << cluster_bits]
    incompatible, length = 0, _LENGTH_V2
    if version == _V3:
        (incompatible,) = _INCOMPATIBLE.unpack_from(data, 72)
        (length,) = struct.unpack_from(">I", data, 100)
        if length < _LENGTH_V3:
            raise ValueError(f"the header length is {length} bytes")
    end = name_offset or len(data)
    known = dict(extensions(data, length, end))
    return Header(
        virtual_size_bytes=size_bytes,
        backing_file=_name(data, name_offset, name_length) if name_offset else None,
        backing_format=BlockDriver(_text(known[_BACKING_FORMAT])) if _BACKING_FORMAT in known else None,
        has_data_file=bool(incompatible & _DATA_FILE_BIT) or _DATA_FILE in known,
        data_file=_text(known[_DATA_FILE]) if _DATA_FILE in known else None,
        encrypted=encryption != 0,
        snapshots=struct.unpack_from(">I", data, _SNAPSHOTS_AT)[0],
    )


def extensions(data: bytes, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each header extension; each is padded to a multiple of 8 bytes."""
    if not begin <= end <= len(data):
        raise ValueError("the backing file name is not in the first cluster")
    while begin < end:
        kind, length = struct.unpack_from(">II", data, begin)
        begin += 8
        if kind == 0:
            return
        if length > end - begin:
            raise ValueError("a header extension is too long")
        yield kind, data[begin : begin + length]
        begin += (length + 7) // 8 * 8


def _name(data: bytes, offset: int, length: int) -> str:
    if length > _MAX_NAME_BYTES or offset + length > len(data):
        raise ValueError("the backing file name is too long")
    return _text(data[offset : offset + length])


def _text(data: bytes) -> str:
    # A name that is not UTF-8 equals none that it is compared with.
    return data.decode(errors="surrogateescape")
