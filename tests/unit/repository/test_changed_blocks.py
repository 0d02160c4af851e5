"""Some blocks of a disk compared with lists: in the images before a rollback, on the disk after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trees import State, Tree
from vbackup.errors import DamagedError
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import changed_blocks, verify
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BLOCKS, SEGMENT_BYTES
from vbackup.repository.changed_blocks import Point, check_images, first_difference

SIZE_BYTES = 1024 * 1024 - 1024
BLOCKS = {0: (1 << 16) - 1}


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Point]:
    """A full and an increment, which overwrites a block and puts zeros in the place of another."""
    tree = Tree(tmp_path / "r")
    full = State.of(SIZE_BYTES, {1: (1, 1), 2: (2, 2), 15: (9, 9)})
    first = tree.backup({"vda": full})
    newest = tree.backup({"vda": full.changed({1: (5, 5), 2: (0, 0), 4: (6, 6)})}, {"vda": first})
    links = tree.repository.catalogue(tree.uuid).history.links(newest, "vda")
    chain = [(link, verify.image_path(tree.repository, link)) for link in links]
    lists = [verify.opened_list(path, link) for link, path in chain]
    yield Point(chain, lists)
    for each in lists:
        each.close()


def expected(point: Point) -> bytearray:
    """The content of the disk, read image by image."""
    data = bytearray(SIZE_BYTES)
    for _, path in reversed(point.chain):
        with Qcow2Layer(path) as layer:
            for extent in layer.extents(0):
                for number in range(extent.clusters):
                    at = (extent.start + number) * BLOCK_BYTES
                    block = bytes(BLOCK_BYTES) if extent.offset is None else bytes(layer.read(extent, number, 1))
                    data[at : at + BLOCK_BYTES] = block[: max(0, SIZE_BYTES - at)]
    return data


class Disk:
    """Content in pieces of any length; runs of zeros are sometimes not sent."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = bytes(content)
        self.random = random.Random(1)

    def read(self, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, memoryview | None]]:
        end = start_bytes + length_bytes
        while start_bytes < end:
            length = min(self.random.choice([512, 3000, 65536, 100000, 300000]), end - start_bytes)
            piece = self.content[start_bytes : start_bytes + length]
            yield start_bytes, length, memoryview(piece) if any(piece) or self.random.random() < 0.5 else None
            start_bytes += length


def difference(point: Point, content: bytearray, blocks: dict[int, int] | None = None) -> int | None:
    return first_difference(
        point,
        blocks or BLOCKS,
        Disk(content),
        max_read_bytes=4 * BLOCK_BYTES,
        check=lambda: None,
        progress=lambda _: None,
    )


def test_right_disk_has_no_difference(point: Point) -> None:
    assert difference(point, expected(point)) is None


@pytest.mark.parametrize("place", [0, 1, 65535, 65536, 2 * 65536 + 77, 4 * 65536, SIZE_BYTES - 1])
def test_each_wrong_byte_is_found(point: Point, place: int) -> None:
    content = expected(point)
    content[place] ^= 1
    block = place // BLOCK_BYTES
    assert difference(point, content) == block * BLOCK_BYTES
    others = {0: BLOCKS[0] & ~(1 << block)}
    assert difference(point, content, others) is None


def test_damaged_block_is_found_if_it_is_needed(point: Point) -> None:
    counted: list[int] = []
    check_images(point, BLOCKS, check=lambda: None, progress=counted.append)
    assert counted[-1] == 3 * BLOCK_BYTES  # what the increment has, and the end of the full
    path = point.chain[1][1]
    with Qcow2Layer(path) as layer:
        offsets = {extent.start: extent.offset for extent in layer.extents(0)}
    with path.open("r+b") as file:
        file.seek((offsets[1] or 0) + 5)
        file.write(b"x")  # which the increment covers
        file.seek((offsets[15] or 0) + 5)
        file.write(b"x")
    check_images(point, {0: 0b111110}, check=lambda: None, progress=counted.append)
    with pytest.raises(DamagedError) as caught:
        check_images(point, BLOCKS, check=lambda: None, progress=counted.append)
    assert (caught.value.start_bytes, caught.value.backup) == (15 * BLOCK_BYTES, point.chain[1][0].backup.id)


def test_blocks_beyond_the_end_of_a_disk_are_left_out() -> None:
    blocks = {0: 0b1111, 1: 0b1, 2: 0b1}
    assert changed_blocks.of_disk(blocks, 2 * BLOCK_BYTES + 1) == {0: 0b111}
    assert changed_blocks.of_disk(blocks, SEGMENT_BYTES + 1) == {0: 0b1111, 1: 0b1}
    assert changed_blocks.of_disk({}, SEGMENT_BYTES) == {}
    assert list(changed_blocks.extents({0: 0b1101}, 3 * BLOCK_BYTES + 512)) == [
        (0, BLOCK_BYTES),
        (2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 512),
    ]
    assert changed_blocks.count_bytes({0: 0b101, 7: 1}) == 3 * BLOCK_BYTES


@pytest.mark.parametrize(
    ("blocks", "cluster_bytes", "widened"),
    [
        ({0: 0b1}, 65536, {0: 0b1}),
        ({0: 0b1}, 512, {0: 0b1}),
        ({0: 0b10000, 3: 0b1000}, 4 * 65536, {0: 0b11110000, 3: 0b1111}),
        ({0: 0b11000}, 4 * 65536, {0: 0b11111111}),
        ({1: 1 << SEGMENT_BLOCKS - 1}, 2 << 20, {1: ((1 << 32) - 1) << SEGMENT_BLOCKS - 32}),
        ({}, 2 << 20, {}),
    ],
)
def test_blocks_become_those_of_whole_clusters(
    blocks: dict[int, int], cluster_bytes: int, widened: dict[int, int]
) -> None:
    assert changed_blocks.whole_clusters(blocks, cluster_bytes) == widened
