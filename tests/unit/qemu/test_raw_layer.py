"""A raw image is read like a layer: where it has data, with zeros after its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.errors import ChainError
from vbackup.qemu.raw_layer import RawLayer

BLOCK = 65536
TABLE = 8192 * BLOCK


def sparse(path: Path, size_bytes: int, *places: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        for at, data in places:
            file.seek(at)
            file.write(data)
        file.truncate(size_bytes)
    return path


def test_only_what_has_data_is_found_however_large_the_disk_is(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk", 1 << 40, (3 * BLOCK, b"x" * BLOCK), (5 * TABLE, b"y"), (1 << 39, b"z"))
    with RawLayer(path) as layer:
        assert layer.virtual_size_bytes == 1 << 40
        assert [*layer.tables()] == [0, 5, (1 << 39) // TABLE]
        [first] = layer.extents(0)
        assert (first.start, first.clusters, first.offset) == (3, 1, 3 * BLOCK)
        assert bytes(layer.read(first, 0, 1)) == b"x" * BLOCK
        [other] = layer.extents(5)
        assert bytes(layer.read(other, 0, 1)) == b"y" + bytes(BLOCK - 1)
        assert layer.extents(1) == []


def test_end_of_the_file_in_a_block_is_followed_by_zeros(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk", BLOCK + 100, (BLOCK, b"e" * 100))
    with RawLayer(path) as layer:
        assert [*layer.tables()] == [0]
        last = layer.extents(0)[-1]
        buffer = bytearray(b"\xff" * 2 * BLOCK)
        assert last.start + last.clusters == 2
        content = layer.read(last, last.clusters - 1, 1, buffer)
        assert bytes(content) == b"e" * 100 + bytes(BLOCK - 100)


def test_blocks_that_touch_are_not_found_twice(tmp_path: Path) -> None:
    """Holes and data are counted in pages, which are smaller than a block."""
    path = sparse(tmp_path / "disk", 4 * BLOCK, (4096, b"a" * 4096), (BLOCK // 2, b"b" * BLOCK), (3 * BLOCK, b"c"))
    with RawLayer(path) as layer:
        blocks = [number for one in layer.extents(0) for number in range(one.start, one.start + one.clusters)]
        assert blocks == sorted(set(blocks))
        assert {0, 1, 3} <= set(blocks)
        for one in layer.extents(0):
            assert one.offset == one.start * BLOCK


def test_empty_disk_has_nothing(tmp_path: Path) -> None:
    with RawLayer(sparse(tmp_path / "disk", 0)) as layer:
        assert [*layer.tables()] == []
        assert layer.extents(0) == []


def test_file_that_is_no_regular_one_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing"):
        with pytest.raises(ChainError, match=f"The image {tmp_path / name} cannot be read"):
            RawLayer(tmp_path / name)
