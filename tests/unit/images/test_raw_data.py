"""Where a raw image has data is asked of the very file that QEMU has open, or not at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from vbackup.images import raw_data

MIB = 1 << 20


@contextmanager
def holding(path: Path, *arguments: str, own_child: bool = False) -> Iterator[None]:
    """A process that has the file open, with these arguments; a grandchild, unless it is to be a child."""
    script = 'exec 9<"$0"; echo open; read wait'
    argv = ["sh", "-c", script, str(path), *arguments]
    if not own_child:
        argv = ["sh", "-c", '"$@"; true', "sh", *argv]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield
        process.stdin.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vda.raw"
    with path.open("wb") as file:
        file.seek(4 * MIB)
        file.write(b"x" * MIB)
        file.truncate(16 * MIB)
    return path


def opened(path: Path, size_bytes: int = 16 * MIB) -> bool:
    fd = raw_data.open_held(path, size_bytes=size_bytes, uuid=UUID)
    if fd is not None:
        os.close(fd)
    return fd is not None


def test_file_of_the_domains_qemu(image: Path) -> None:
    with holding(image, "-name", "guest=web", "-uuid", UUID):
        assert opened(image)


def test_file_of_a_child_such_as_the_storage_daemon(image: Path) -> None:
    with holding(image, own_child=True):
        assert opened(image)


def test_file_that_nobody_or_somebody_else_has_open(image: Path) -> None:
    assert not opened(image)
    with holding(image, "-uuid", UUID.replace("1", "2")), holding(image, "-name", UUID):
        assert not opened(image)


def test_another_file_that_has_the_name_now(image: Path, tmp_path: Path) -> None:
    """Its holes are not those of the file that QEMU reads."""
    with holding(image, "-uuid", UUID):
        image.rename(tmp_path / "moved.raw")
        image.write_bytes(bytes(16 * MIB))
        assert not opened(image)


def test_file_of_another_size_is_used_in_part(image: Path) -> None:
    with holding(image, "-uuid", UUID):
        assert not opened(image, 16 * MIB - 512)
        assert not opened(image, 16 * MIB + 512)
        os.truncate(image, 16 * MIB - 511)
        assert opened(image)  # QEMU rounds it up to a sector


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    assert not any(opened(tmp_path / name) for name in ("link", "fifo", "missing", "."))


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
    assert sum(end - start for start, end in found) < 2 * MIB  # where the file system knows holes


def test_file_without_data_has_no_extents(tmp_path: Path) -> None:
    path = tmp_path / "empty.raw"
    path.touch()
    os.truncate(path, 40 << 30)
    fd = os.open(path, os.O_RDONLY)
    assert list(raw_data.extents(fd, check=lambda: None)) == []
    os.close(fd)
