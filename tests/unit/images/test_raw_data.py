"""Where a raw image has data is asked of the very file that QEMU has open, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.images import raw_data

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    with path.open("wb") as file:
        file.seek(4 * MIB)
        file.write(b"x" * MIB)
        file.truncate(16 * MIB)
    return path


def opened(path: Path, held: Path, size_bytes: int = 16 * MIB) -> bool:
    status = held.stat()
    fd = raw_data.open_held(path, size_bytes=size_bytes, open_files={(status.st_dev, status.st_ino)})
    if fd is not None:
        os.close(fd)
    return fd is not None


def test_only_a_file_that_is_open_in_qemu(image: Path) -> None:
    assert opened(image, image)
    assert not opened(image, image.parent)
    assert raw_data.open_held(image, size_bytes=16 * MIB, open_files=()) is None


def test_another_file_that_has_the_name_now(image: Path, tmp_path: Path) -> None:
    """Its holes are not those of the file that QEMU reads."""
    held = image.rename(tmp_path / "moved.raw")
    image.write_bytes(bytes(16 * MIB))
    assert not opened(image, held)


def test_file_of_another_size_is_used_in_part(image: Path) -> None:
    assert not opened(image, image, 16 * MIB - 512)
    assert not opened(image, image, 16 * MIB + 512)
    os.truncate(image, 16 * MIB - 511)
    assert opened(image, image)  # QEMU rounds it up to a sector


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    paths = [tmp_path / name for name in ("link", "fifo", ".")]
    assert not any(opened(path, path) for path in paths)
    assert not opened(tmp_path / "missing", tmp_path)


def test_extents_cover_all_data(image: Path) -> None:
    checks: list[None] = []
    fd = os.open(image, os.O_RDONLY)
    try:
        found = list(raw_data.extents(fd, check=lambda: checks.append(None)))
    finally:
        os.close(fd)
    assert len(checks) > len(found)
    data = image.read_bytes()
    covered = bytearray(len(data))
    for start, end in found:
        covered[start:end] = data[start:end]
    assert covered == data
    assert sum(end - start for start, end in found) < 2 * MIB  # where the filesystem knows holes


def test_file_without_data_has_no_extents(tmp_path: Path) -> None:
    path = tmp_path / "empty.raw"
    path.touch()
    os.truncate(path, 40 << 30)
    fd = os.open(path, os.O_RDONLY)
    assert list(raw_data.extents(fd, check=lambda: None)) == []
    os.close(fd)
