"""One image is read and compared; ranges and the random part of a sample are what they should be."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vbackup.repository import block_list, image_check
from vbackup.repository.block_list import BLOCK_BYTES, DIGEST_BYTES, SEGMENT_BYTES, BlockList, Segment, mask_of
from vbackup.repository.image_check import Watch

SIZE_BYTES = 3 * SEGMENT_BYTES


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({}, []),
        ({0: 0b1}, [(0, BLOCK_BYTES)]),
        ({0: 0b1011}, [(0, 2 * BLOCK_BYTES), (3 * BLOCK_BYTES, BLOCK_BYTES)]),
        ({0: mask_of(8191, 8192), 1: 0b11}, [(SEGMENT_BYTES - BLOCK_BYTES, 3 * BLOCK_BYTES)]),
        (
            {0: mask_of(8191, 8192), 2: 0b1},
            [(SEGMENT_BYTES - BLOCK_BYTES, BLOCK_BYTES), (2 * SEGMENT_BYTES, BLOCK_BYTES)],
        ),
        ({2: mask_of(8190, 8192)}, [(SIZE_BYTES - 2 * BLOCK_BYTES, 2 * BLOCK_BYTES - 512)]),
    ],
)
def test_ranges_are_joined_and_end_with_the_disk(blocks: dict[int, int], expected: list[tuple[int, int]]) -> None:
    assert [*image_check.ranges(blocks, virtual_size_bytes=SIZE_BYTES - 512)] == expected


def listed(path: Path, *segments: Segment) -> BlockList:
    algorithm = block_list.best_algorithm()
    block_list.write(path, segments, virtual_size_bytes=SIZE_BYTES, algorithm=algorithm)
    return BlockList.open(path)


def segment(number: int, data: int, zeros: int = 0) -> Segment:
    return Segment(number, data | zeros, data, b"d" * DIGEST_BYTES * block_list.count(data))


def part(one: BlockList, percent: float, seed: int = 1) -> dict[int, int]:
    chosen = image_check._Part(one, Watch(lambda _size: None, percent, random.Random(seed)))
    return {each.number: chosen.of(each) for each in one.segments()}


def test_sample_has_about_the_wanted_part_and_all_zeros(tmp_path: Path) -> None:
    with listed(
        tmp_path / "list", segment(0, mask_of(0, 8192)), segment(2, mask_of(0, 4096), mask_of(4096, 8192))
    ) as one:
        chosen = part(one, 25)
        read = block_list.count(chosen[0]) + block_list.count(chosen[2] & mask_of(0, 4096))
        assert 0.15 < read / (8192 + 4096) < 0.35
        assert chosen[2] & mask_of(4096, 8192) == mask_of(4096, 8192)
        assert part(one, 25, seed=2) != chosen
        assert part(one, 100) == {0: block_list.ALL, 2: block_list.ALL}


def test_sample_of_a_small_image_is_not_empty(tmp_path: Path) -> None:
    with listed(tmp_path / "list", segment(0, 0, 0b1), segment(1, 0b110)) as one:
        for seed in range(20):
            assert part(one, 0.001, seed)[1] & 0b110


def test_sample_of_zeros_reads_nothing(tmp_path: Path) -> None:
    with listed(tmp_path / "list", segment(0, 0, 0b1)) as one:
        assert part(one, 1)[0] & 0b1
