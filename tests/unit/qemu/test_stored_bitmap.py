"""A bitmap that is in an image is read bit by bit; what QEMU has not stored as a whole is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from random import Random

import pytest

from vbackup.errors import MalformedError
from vbackup.qemu import qcow2_bitmap
from vbackup.qemu.stored_bitmap import StoredBitmap

GRANULE = 65536
TIB = 1 << 40
SEGMENT = 8192


def opened(path: Path, name: str = "where") -> StoredBitmap:
    return StoredBitmap(os.open(path, os.O_RDONLY), name)


def write(path: Path, size_bytes: int, granules: set[int], *, name: str = "where") -> None:
    with path.open("xb") as file:
        extents = [(one * GRANULE, min((one + 1) * GRANULE, size_bytes)) for one in sorted(granules)]
        qcow2_bitmap.write(file, size_bytes, name=name, extents=extents)


@pytest.mark.parametrize("size_bytes", [GRANULE, 3 * GRANULE + 512, 600 << 20, 3 * TIB + 512])
def test_what_was_written_is_read(tmp_path: Path, size_bytes: int) -> None:
    path, random = tmp_path / "b.qcow2", Random(3)
    last = (size_bytes - 1) // GRANULE
    chosen = {0, last, *(random.randrange(last + 1) for _ in range(200))}
    write(path, size_bytes, chosen)
    bitmap = opened(path)
    assert bitmap.granularity_bytes == GRANULE
    for number in {one // SEGMENT for one in chosen} | {0, last // SEGMENT + 1}:
        expected = sum(1 << (one % SEGMENT) for one in chosen if one // SEGMENT == number)
        assert bitmap.mask(number * SEGMENT, SEGMENT) == expected


def test_what_qemu_stores_is_read(tmp_path: Path) -> None:
    """Clusters of 64 KiB, other bitmaps beside it, and a merge by QEMU."""
    source, path = tmp_path / "source.qcow2", tmp_path / "b.qcow2"
    size_bytes = (1 << 32) + 137 * 512
    chosen = {1, 2, 8191, 8192, 40_000, size_bytes // GRANULE}
    write(source, size_bytes, chosen)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size_bytes)], check=True)
    for name in ("a", "where", "z"):
        subprocess.run(["qemu-img", "bitmap", "--add", "-g", "64k", str(path), name], check=True)
    merge = ["qemu-img", "bitmap", "--merge", "where", "-b", str(source), "-F", "qcow2", str(path), "where"]
    subprocess.run(merge, check=True)
    found = opened(path)
    for number in range(9):
        expected = sum(1 << (one % SEGMENT) for one in chosen if one // SEGMENT == number)
        assert found.mask(number * SEGMENT, SEGMENT) == expected
    assert opened(path, "a").mask(0, SEGMENT) == 0


def test_image_that_is_open_has_not_stored_it(tmp_path: Path) -> None:
    path = tmp_path / "b.qcow2"
    write(path, 1 << 30, {1})
    data = bytearray(path.read_bytes()[: 16 << 20])
    place = data.index(b"where") - 24 + 12
    data[place : place + 4] = b"\0\0\0\1"  # in use
    path.write_bytes(data)
    with pytest.raises(MalformedError, match="where cannot be read: QEMU has not stored all of it"):
        opened(path)


def test_missing_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "b.qcow2"
    write(path, 1 << 30, {1})
    with pytest.raises(MalformedError, match="it is not in the image"):
        opened(path, "other")
    bare = tmp_path / "bare.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(bare), "1M"], check=True)
    with pytest.raises(MalformedError, match="QEMU has not stored it"):
        opened(bare)
    path.write_bytes(path.read_bytes()[: 5 << 20])
    with pytest.raises(MalformedError, match="the image ends before it"):
        opened(path).mask(0, SEGMENT)
