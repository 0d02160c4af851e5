"""What is read is of one moment, or the reason is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.domain import state_files
from vbackup.domain.host_files import FilesHere
from vbackup.domain.state_files import UnsavedError

MIB = 1024 * 1024


def test_first_two_readings_that_are_alike_count() -> None:
    readings = iter([1, 2, 2, 3])
    assert state_files.stable(lambda: next(readings), "it") == 2
    assert list(readings) == [3]


def test_what_changes_all_the_time_is_told() -> None:
    readings = iter(range(100))
    with pytest.raises(UnsavedError, match=r"^it changed each time it was read$") as caught:
        state_files.stable(lambda: next(readings), "it")
    assert caught.value.is_unexpected
    assert next(readings) == state_files.MAX_READINGS


def read(path: Path, max_bytes: int = 3 * MIB) -> bytes:
    return b"".join(state_files.pieces(FilesHere(), str(path), "kernel", max_bytes=max_bytes))


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, 2 * MIB + 1, 3 * MIB])
def test_file_is_read_whole_also_through_a_link(tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    (tmp_path / "vmlinuz-6.1").write_bytes(data)
    (tmp_path / "vmlinuz").symlink_to("vmlinuz-6.1")
    assert read(tmp_path / "vmlinuz") == data


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: it is a directory"),
        (os.mkfifo, "cannot be read: it is a FIFO"),
        (lambda path: path.write_bytes(bytes(3 * MIB + 1)), "is larger than 3 MiB"),
    ],
)
def test_file_that_cannot_be_read_is_told(tmp_path: Path, make: object, said: str) -> None:
    make(tmp_path / "k")  # type: ignore[operator]
    with pytest.raises(UnsavedError, match=f"^kernel {tmp_path}/k {said}") as caught:
        read(tmp_path / "k")
    assert caught.value.is_too_large is ("larger" in said)


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 17), lambda path: os.utime(path, (1, 1))])
def test_file_that_changes_meanwhile_is_told(tmp_path: Path, change: object) -> None:
    """Half of an old kernel and half of a new one would be neither."""
    path = tmp_path / "k"
    path.write_bytes(bytes(2 * MIB))
    pieces = state_files.pieces(FilesHere(), str(path), "kernel", max_bytes=3 * MIB)
    next(pieces)
    change(path)  # type: ignore[operator]
    with pytest.raises(UnsavedError, match="changed while it was read"):
        list(pieces)
