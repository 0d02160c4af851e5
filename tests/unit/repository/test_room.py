"""Room on storage: what is allocated, each file once, and what is shared where the kernel tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.repository.room import Meter, Room

MIB = 1024 * 1024


def test_allocated_bytes_count_and_not_the_length(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with (tmp_path / "sub" / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.write(b"x" * MIB)
        os.fsync(file.fileno())
    (tmp_path / "link").symlink_to(tmp_path / "sub" / "sparse")
    files = Meter(has_reflinks=False).files(tmp_path)
    assert set(files) == {"sub/sparse"}
    assert MIB <= files["sub/sparse"].own_bytes < 2 * MIB


def test_file_with_several_names_counts_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "file").write_bytes(bytes(MIB))
    os.link(tmp_path / "one" / "file", tmp_path / "two" / "file")
    meter = Meter(has_reflinks=False)
    assert meter.total(tmp_path / "one").own_bytes >= MIB
    assert meter.total(tmp_path / "two") == Room()


def test_directory_that_is_gone_takes_nothing(tmp_path: Path) -> None:
    assert Meter(has_reflinks=True).files(tmp_path / "gone") == {}


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    image, place = tmp_path / "xfs.img", tmp_path / "xfs"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    try:
        subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    except FileNotFoundError:
        pytest.skip("there is no mkfs.xfs")
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_what_is_shared_by_reflink_is_told(xfs: Path) -> None:
    """More extents than one call has room for, of which only some are shared."""
    for name in ("a", "b"):
        (xfs / name).mkdir()
    extents = 1100
    with (xfs / "a" / "data").open("wb") as file:
        for number in range(extents):
            file.seek(number * 8192)
            file.write(os.urandom(4096))
    (xfs / "a" / "own").write_bytes(os.urandom(MIB))
    subprocess.run(["cp", "--reflink=always", str(xfs / "a" / "data"), str(xfs / "b" / "data")], check=True)
    os.sync()
    files = Meter(has_reflinks=True).files(xfs / "a")
    assert files["data"].shared_bytes == extents * 4096
    assert files["own"].shared_bytes == 0
    assert files["own"].exclusive_bytes >= MIB
    assert Meter(has_reflinks=False).files(xfs / "a")["data"].shared_bytes == 0
