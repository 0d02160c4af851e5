"""Find the format of an image by its first bytes, as libvirt does where nothing records it.

A guest can write anything into a raw disk, also the header of an image that names other files of the host. So an image
that names files is recognised, and only vbackup reads the bytes; QEMU gets a format.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.model import BlockDriver
from vbackup.qemu import qcow2

#: Offset and bytes by which QEMU and libvirt know a format (fileTypeInfo in libvirt's storage_file_probe.c, and the
#: bdrv_probe functions of QEMU). The formats that have no header at a fixed place cannot be backing files in libvirt.
_MAGICS = (
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
)
#: Formats whose images never name another file.
_ALONE = frozenset(map(BlockDriver, ("raw", "vpc", "vdi", "luks", "bochs")))
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Found:
    """What the first bytes of an image look like."""

    format: BlockDriver
    names_files: bool  #: it names a backing file or a data file, or that is not known


def probe(path: Path) -> Found:
    """Return the format of an image; raw if it has no header of another format. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        data = file.read(_HEADER_BYTES)
    if data[:4] == b"QFI\xfb":
        return _qcow(path, data)
    found = next((name for offset, magic, name in _MAGICS if data[offset : offset + len(magic)] == magic), "raw")
    image_format = BlockDriver(found)
    return Found(image_format, names_files=image_format not in _ALONE)


def _qcow(path: Path, data: bytes) -> Found:
    (version,) = struct.unpack(">I", data[4:8].ljust(4, b"\0"))
    if version == 1:
        (backing_offset,) = struct.unpack(">Q", data[8:16].ljust(8, b"\0"))
        return Found(BlockDriver("qcow"), names_files=backing_offset != 0)
    try:
        header = qcow2.header_of_source(path)
    except ChainError:
        return Found(BlockDriver.QCOW2, names_files=True)
    return Found(BlockDriver.QCOW2, names_files=header.has_data_file or header.backing_file is not None)
