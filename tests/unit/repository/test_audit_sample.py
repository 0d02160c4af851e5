"""Which blocks an audit reads: the share that was asked for, never none, and no walk over a huge disk."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.repository import audit_sample, block_list
from vbackup.repository.audit_sample import MIN_BLOCKS, MIN_PIECE_BLOCKS, Sample, choose
from vbackup.repository.block_list import BLOCK_BYTES, DIGEST_BYTES, SEGMENT_BLOCKS, BlockList, Segment, count
from vbackup.repository.composition import Composition

TIB = 1 << 40


def listed(path: Path, masks: dict[int, tuple[int, int]], size_bytes: int) -> BlockList:
    """A list with these masks of blocks that are held, and of those that are data."""
    segments = [
        Segment(number, held, data, b"\1" * (DIGEST_BYTES * count(data)))
        for number, (held, data) in sorted(masks.items())
    ]
    block_list.write(path, segments, virtual_size_bytes=size_bytes, algorithm=block_list.best_algorithm())
    return BlockList.open(path)


def data_in(sample: Sample, masks: dict[int, tuple[int, int]]) -> int:
    return sum(count(mask & masks.get(number, (0, 0))[1]) for number, mask in sample.masks.items())


def test_share_of_the_data_is_read_block_by_block(tmp_path: Path) -> None:
    masks = dict.fromkeys(range(8), (block_list.ALL, block_list.ALL))
    with listed(tmp_path / "vda.blocks", masks, 8 << 29) as one:
        sample = choose(Composition([one]), size_bytes=8 << 29, percent=1, random=Random(1))
    assert data_in(sample, masks) == pytest.approx(8 * SEGMENT_BLOCKS / 100, abs=8)
    runs = [end - start for start, end in sample.extents()]
    assert sorted(runs)[len(runs) // 2] == BLOCK_BYTES


def test_everything_is_everything(tmp_path: Path) -> None:
    size_bytes = (600 << 20) + 512
    masks = {0: (0b111, 0b101)}
    with listed(tmp_path / "vda.blocks", masks, size_bytes) as one:
        sample = choose(Composition([one]), size_bytes=size_bytes, percent=100)
        assert sample.blocks == 600 * 16 + 1
        partial = choose(Composition([one]), size_bytes=size_bytes, percent=100, is_complete=False)
        assert partial.masks == {0: 0b111}


def test_little_data_is_read_as_a_whole(tmp_path: Path) -> None:
    masks = {0: ((1 << MIN_BLOCKS) - 1,) * 2}
    with listed(tmp_path / "vda.blocks", masks, TIB) as one:
        sample = choose(Composition([one]), size_bytes=TIB, percent=0.001)
    assert data_in(sample, masks) == MIN_BLOCKS


def test_huge_disk_is_not_walked(tmp_path: Path) -> None:
    masks = {0: (0xFF, 0xFF)}
    with listed(tmp_path / "vda.blocks", masks, 40 * TIB) as one:
        begun = time.process_time()
        sample = choose(Composition([one]), size_bytes=40 * TIB, percent=1)
        assert time.process_time() - begun < 1
    assert len(sample.masks) <= audit_sample.MAX_PIECES + 1
    assert sample.blocks == pytest.approx(40 * TIB / BLOCK_BYTES / 100, rel=0.3)


@given(size_bytes=st.integers(1, 3 << 29), percent=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_sample_is_within_the_disk_and_never_empty(
    tmp_path_factory: pytest.TempPathFactory, size_bytes: int, percent: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("sample") / "vda.blocks"
    blocks = -(-size_bytes // BLOCK_BYTES)
    held = (1 << min(blocks, 9)) - 1
    with listed(path, {0: (held, held & 0b10101)}, size_bytes) as one:
        sample = choose(Composition([one]), size_bytes=size_bytes, percent=percent, random=Random(seed))
    extents = list(sample.extents())
    assert extents == sorted(extents)
    assert extents[-1][1] <= blocks * BLOCK_BYTES
    # One of the pieces may be the short one at the end.
    assert sample.blocks >= min(blocks, MIN_BLOCKS - MIN_PIECE_BLOCKS)


def test_every_block_can_be_chosen(tmp_path: Path) -> None:
    size_bytes = 64 << 20
    data = sum(1 << block for block in range(0, 1024, 2))
    with listed(tmp_path / "vda.blocks", {0: (data, data)}, size_bytes) as one:
        known = Composition([one])
        seen = 0
        for seed in range(60):
            seen |= choose(known, size_bytes=size_bytes, percent=1, random=Random(seed)).masks[0]
    assert count(seen) == 1024


def test_confidence() -> None:
    assert audit_sample.chance_to_miss(1, read=10, of=1000) == pytest.approx(0.99)
    assert audit_sample.chance_to_miss(5, read=1000, of=1000) == 0
    assert audit_sample.blocks_found(read=10, of=1000) == 299
    assert audit_sample.blocks_found(read=1000, of=1000) == 1
    assert audit_sample.chance_to_miss(299, read=10, of=1000) <= 0.05
