"""What differs between two points is found from lists alone, as a comparison block by block would find it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.errors import ChainError
from vbackup.repository import block_list
from vbackup.repository.block_list import (
    ALL,
    BLOCK_BYTES,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
    Algorithm,
    BlockList,
    Segment,
    runs,
)
from vbackup.repository.comparison import Comparison, Extent, Kind

BEST = block_list.best_algorithm()
OTHER = replace(BEST, name="other", number=99)
SIZE_BYTES = 3 * SEGMENT_BYTES
#: Places where something can go wrong: the ends of segments, and neighbours.
PLACES = (0, 1, 2, 3, 64, SEGMENT_BLOCKS - 2, SEGMENT_BLOCKS - 1, SEGMENT_BLOCKS, SEGMENT_BLOCKS + 1, 20000, 20001)


@dataclass(frozen=True, eq=False)
class Image:
    """The list of an image: number of a block to its content, 0 for zeros."""

    content: Mapping[int, int]
    algorithm: Algorithm = BEST
    virtual_size_bytes: int = SIZE_BYTES

    @property
    def numbers(self) -> set[int]:
        return {block // SEGMENT_BLOCKS for block in self.content}

    def segment(self, number: int) -> Segment:
        first = number * SEGMENT_BLOCKS
        own = {block - first: value for block, value in self.content.items() if block // SEGMENT_BLOCKS == number}
        held = sum(1 << block for block in own)
        data = sum(1 << block for block, value in own.items() if value)
        digests = b"".join(self._digest(own[block]) for start, end in runs(data) for block in range(start, end))
        return Segment(number, held, data, digests)

    def _digest(self, value: int) -> bytes:
        return sha256(f"{self.algorithm.number} {value}".encode()).digest()


def expected(before: Sequence[Image], after: Sequence[Image]) -> dict[int, Kind]:
    """Block by block, as QEMU reads a chain."""
    found = {}
    for block in PLACES:
        (image, was), (other, now) = (
            next(((one, one.content[block]) for one in chain if block in one.content), (None, 0))
            for chain in (before, after)
        )
        if bool(was) != bool(now):
            found[block] = Kind.NEW if now else Kind.ZERO
        elif was and image is not other:
            assert image is not None
            assert other is not None
            if image.algorithm is not other.algorithm:
                found[block] = Kind.UNDECIDED
            elif was != now:
                found[block] = Kind.DATA
    return found


def images(max_size: int) -> st.SearchStrategy[list[Image]]:
    content = st.dictionaries(st.sampled_from(PLACES), st.integers(0, 2))
    return st.lists(st.builds(Image, content, st.sampled_from([BEST, BEST, BEST, OTHER])), max_size=max_size)


@given(images(3), images(3), images(3))
def test_any_two_chains_differ_as_their_blocks_do(own: list[Image], others: list[Image], common: list[Image]) -> None:
    bottom = [*common, Image({})]
    before, after = own + bottom, others + bottom
    wanted = expected(before, after)
    comparison = Comparison(before, after)
    found = {
        changes.number * SEGMENT_BLOCKS + block: kind
        for changes in comparison.changes()
        for kind, mask in changes.masks.items()
        for start, end in runs(mask)
        for block in range(start, end)
    }
    assert found == wanted
    by_extent = {
        extent.start_bytes // BLOCK_BYTES + number: extent.kind
        for extent in comparison.extents()
        for number in range(extent.length_bytes // BLOCK_BYTES)
    }
    assert by_extent == wanted
    counted = {kind: sum(one is kind for one in wanted.values()) * BLOCK_BYTES for kind in Kind}
    assert comparison.totals() == counted


def test_extents_are_as_long_as_they_can_be() -> None:
    """Over the end of a segment too, and not over a change of the kind."""
    last = SEGMENT_BLOCKS - 1
    before = Image({0: 1, 1: 1, last: 1, last + 1: 1, last + 2: 1})
    after = Image({0: 2, 1: 2, last: 2, last + 1: 2, last + 2: 0})
    assert list(Comparison([before], [after]).extents()) == [
        Extent(0, 2 * BLOCK_BYTES, Kind.DATA),
        Extent(last * BLOCK_BYTES, 2 * BLOCK_BYTES, Kind.DATA),
        Extent((last + 2) * BLOCK_BYTES, BLOCK_BYTES, Kind.ZERO),
    ]


@pytest.mark.parametrize(("sizes", "kind"), [((65537, 131073), Kind.NEW), ((131073, 65537), Kind.ZERO)])
def test_disk_that_has_another_size_reads_as_zeros_beyond_its_end(sizes: tuple[int, int], kind: Kind) -> None:
    """The last block ends with the disk."""
    before, after = (Image(dict.fromkeys(range(-(-size // BLOCK_BYTES)), 1), virtual_size_bytes=size) for size in sizes)
    comparison = Comparison([before], [after])
    assert comparison.totals()[kind] == 1
    assert list(comparison.extents()) == [Extent(131072, 1, kind)]


def test_zeros_and_nothing_are_the_same() -> None:
    comparison = Comparison([Image({0: 0, 9000: 0})], [Image({1: 0})])
    assert list(comparison.changes()) == []


def test_image_of_both_chains_is_not_looked_into() -> None:
    class Untouchable(Image):
        def segment(self, number: int) -> Segment:
            raise AssertionError(number)

    base = Untouchable(dict.fromkeys(PLACES, 1))
    assert list(Comparison([base], [base]).changes()) == []
    newer, newest = Image({0: 1, 1: 0, 2: 1}), Image({0: 2, 1: 0, 2: 1})
    assert Comparison([newer, base], [newest, base]).totals()[Kind.DATA] == BLOCK_BYTES


def written(path: Path, content: Mapping[int, Mapping[int, bytes]], *, size_bytes: int) -> BlockList:
    """A list file: segment, block, digest."""
    segments = [
        Segment(
            number,
            mask := sum(1 << block for block in blocks),
            mask,
            b"".join(blocks[block] for block in sorted(blocks)),
        )
        for number, blocks in sorted(content.items())
    ]
    block_list.write(path, segments, virtual_size_bytes=size_bytes, algorithm=BEST)
    return BlockList.open(path)


def test_huge_disk_with_little_data_takes_no_time(tmp_path: Path) -> None:
    """1 TiB with 64 MiB, once in one place and once all over; a walk over the disk would take a minute."""
    tib = 1 << 40
    scattered = {number * 2: {number % SEGMENT_BLOCKS: sha256(b"%d" % number).digest()} for number in range(1024)}
    dense = {7: {block: sha256(b"%d" % block).digest() for block in range(1024)}}
    with (
        written(tmp_path / "a", scattered, size_bytes=tib) as before,
        written(tmp_path / "b", dense, size_bytes=tib) as after,
    ):
        began_s = time.process_time()
        totals = Comparison([before], [after]).totals()
        extents = list(Comparison([before], [after]).extents())
        assert time.process_time() - began_s < 1
    assert totals == {Kind.ZERO: 64 << 20, Kind.NEW: 64 << 20, Kind.DATA: 0, Kind.UNDECIDED: 0}
    assert len(extents) == 1025


def test_segment_of_zeros_has_no_digests(tmp_path: Path) -> None:
    digest = sha256(b"x").digest()
    zeros = Segment(0, ALL, 0, b"")
    block_list.write(tmp_path / "z", [zeros], virtual_size_bytes=SEGMENT_BYTES, algorithm=BEST)
    with (
        written(tmp_path / "a", {0: {5: digest}}, size_bytes=SEGMENT_BYTES) as before,
        BlockList.open(tmp_path / "z") as after,
    ):
        assert after.masks(0) == (ALL, 0)
        assert Comparison([before], [after, before]).totals()[Kind.ZERO] == BLOCK_BYTES


def test_damaged_list_is_told(tmp_path: Path) -> None:
    written(tmp_path / "a", {0: {5: bytes(32)}}, size_bytes=SEGMENT_BYTES).close()
    data = bytearray((tmp_path / "a").read_bytes())
    data[block_list.HEADER.size] ^= 1
    (tmp_path / "a").write_bytes(data)
    with BlockList.open(tmp_path / "a") as before, pytest.raises(ChainError, match="segment 0 does not fit"):
        Comparison([before], [Image({})]).totals()
