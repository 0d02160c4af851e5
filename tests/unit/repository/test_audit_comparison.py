"""What an audit read is compared with the lists of a chain: every block that was clean, and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from vbackup.qemu.qcow2_layer import Extent
from vbackup.repository import block_list
from vbackup.repository.audit_comparison import Compared, Known, Range, compare
from vbackup.repository.audit_sample import Sample
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BLOCKS, Algorithm, BlockList, Segment
from vbackup.repository.composition import Composition

BLAKE3, SHA256 = block_list.best_algorithm(), block_list._KNOWN[2]
FULL, INCREMENTAL = "20261123T120000Z-full", "20261123T130000Z-incremental"
BLOCKS = 40
SIZE_BYTES = BLOCKS * BLOCK_BYTES


def content(number: int) -> bytes:
    return bytes([number]) * BLOCK_BYTES


def make_list(
    path: Path, blocks: dict[int, int], *, algorithm: Algorithm = BLAKE3, size_bytes: int = SIZE_BYTES
) -> BlockList:
    """The list of an image with these blocks: place to byte; 0 is a block of zeros."""
    held = sum(1 << block for block in blocks)
    data = sum(1 << block for block, byte in blocks.items() if byte)
    digests = b"".join(algorithm.digest(content(blocks[block])) for block in sorted(blocks) if blocks[block])
    block_list.write(path, [Segment(0, held, data, digests)], virtual_size_bytes=size_bytes, algorithm=algorithm)
    return BlockList.open(path)


@dataclass
class Copy:
    """What was read: place on the disk to byte."""

    blocks: dict[int, int]
    virtual_size_bytes: int = SIZE_BYTES
    read_blocks: list[int] = field(default_factory=list)

    def tables(self) -> Iterator[int]:
        return iter(sorted({block // SEGMENT_BLOCKS for block in self.blocks}))

    def extents(self, number: int) -> list[Extent]:
        return [Extent(block, 1, block if byte else None) for block, byte in sorted(self.blocks.items())]

    def read(self, extent: Extent, first: int, clusters: int, buffer: bytearray | None = None) -> memoryview:
        self.read_blocks.append(extent.start)
        return memoryview(content(self.blocks[extent.start]))


def compared(known: Known, copy: Copy, *, sample: int, dirty: Callable[[int], int] = lambda _number: 0) -> Compared:
    return compare(known, Sample({0: sample}), dirty=dirty, copy=copy, check=lambda: None, progress=lambda _done: None)


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Known]:
    """A full in SHA-256 and an incremental in the best algorithm."""
    full = make_list(tmp_path / "full.blocks", {0: 1, 1: 1, 2: 1, 3: 1, 4: 0}, algorithm=SHA256)
    newest = make_list(tmp_path / "newest.blocks", {1: 2, 2: 0, 9: 5})
    with full, newest:
        yield Known(Composition([newest, full]), [INCREMENTAL, FULL, FULL], SIZE_BYTES)


TRUTH = {0: 1, 1: 2, 2: 0, 3: 1, 4: 0, 9: 5, 20: 0, 39: 0}
ALL = (1 << BLOCKS) - 1


def everything(**changes: int) -> dict[int, int]:
    return {**dict.fromkeys(range(BLOCKS), 0), **TRUTH, **{int(name[1:]): byte for name, byte in changes.items()}}


def test_truth_is_good(known: Known) -> None:
    found = compared(known, Copy(everything()), sample=ALL)
    assert (found.clean_data, found.read_data, found.read_zeros) == (4, 4, BLOCKS - 4)
    assert (found.wrong, found.missing, found.ranges) == (0, 0, [])


@pytest.mark.parametrize("block", range(BLOCKS))
def test_each_wrong_block_is_found(known: Known, block: int) -> None:
    found = compared(known, Copy(everything(**{f"b{block}": 77})), sample=ALL)
    since = INCREMENTAL if block in (1, 2, 9) else FULL
    assert (found.wrong, found.ranges) == (1, [Range(block * BLOCK_BYTES, BLOCK_BYTES, since)])


@pytest.mark.parametrize("block", [0, 1, 9])
def test_data_that_became_zeros_is_found(known: Known, block: int) -> None:
    assert compared(known, Copy(everything(**{f"b{block}": 0})), sample=ALL).wrong == 1


def test_dirty_block_is_not_compared_nor_read(known: Known) -> None:
    copy = Copy(everything(b0=77, b9=77, b30=77))
    found = compared(known, copy, sample=ALL, dirty=lambda _number: 1 << 0 | 1 << 9 | 1 << 30)
    assert (found.wrong, found.dirty, found.clean_data) == (0, 3, 2)
    assert not {0, 9, 30} & set(copy.read_blocks)


def test_block_outside_the_sample_is_not_compared(known: Known) -> None:
    found = compared(known, Copy({0: 1, 1: 77}), sample=0b1)
    assert (found.wrong, found.read_data, found.clean_data) == (0, 1, 4)


def test_block_that_was_not_stored_is_missing_and_never_wrong(known: Known) -> None:
    blocks = everything()
    del blocks[1], blocks[30]
    found = compared(known, Copy(blocks), sample=ALL)
    assert (found.missing, found.wrong) == (2, 0)
    found = compared(known, Copy({}), sample=ALL)
    assert (found.missing, found.wrong) == (BLOCKS, 0)


def test_neighbours_are_one_range_and_the_last_ends_with_the_disk(known: Known) -> None:
    short = Known(known.composition, known.ids, SIZE_BYTES - 1000)
    found = compared(short, Copy(everything(b3=7, b4=7, b9=7, b38=7, b39=7)), sample=ALL)
    assert found.ranges == [
        Range(3 * BLOCK_BYTES, 2 * BLOCK_BYTES, FULL),
        Range(9 * BLOCK_BYTES, BLOCK_BYTES, INCREMENTAL),
        Range(38 * BLOCK_BYTES, 2 * BLOCK_BYTES - 1000, FULL),
    ]


def test_disk_that_has_grown_reads_as_zeros_where_it_was_not(tmp_path: Path) -> None:
    with make_list(tmp_path / "small.blocks", {0: 1}, size_bytes=2 * BLOCK_BYTES) as one:
        grown = Known(Composition([one]), [FULL, FULL], SIZE_BYTES)
        blocks = {**dict.fromkeys(range(BLOCKS), 0), 0: 1}
        assert compared(grown, Copy(blocks), sample=ALL).wrong == 0
        assert compared(grown, Copy({**blocks, 30: 4}), sample=ALL).wrong == 1


def test_random_chains_and_disks_agree_with_a_model(tmp_path: Path) -> None:
    random = Random(7)
    for round_ in range(40):
        layers = [
            {block: random.choice([0, 1, 2]) for block in random.sample(range(BLOCKS), random.randrange(BLOCKS))}
            for _ in range(3)
        ]
        lists = [
            make_list(tmp_path / f"{round_}-{place}.blocks", layer or {0: 0}, algorithm=random.choice([BLAKE3, SHA256]))
            for place, layer in enumerate(layers)
        ]
        expected = {block: next((one[block] for one in layers if block in one), 0) for block in range(BLOCKS)}
        for place, layer in enumerate(layers):
            if not layer:
                expected[0] = next((one[0] for one in layers[:place] if 0 in one), 0)
                layers[place] = {0: 0}
        expected = {block: next((one[block] for one in layers if block in one), 0) for block in range(BLOCKS)}
        disk = {block: byte if random.random() < 0.9 else random.choice([0, 3]) for block, byte in expected.items()}
        sample, dirty = random.getrandbits(BLOCKS), random.getrandbits(BLOCKS)
        known = Known(Composition(lists), [str(place) for place in (0, 1, 2, 2)], SIZE_BYTES)
        found = compared(known, Copy(disk), sample=sample, dirty=lambda _number, mask=dirty: mask)
        wrong = {
            block
            for block in range(BLOCKS)
            if sample >> block & 1 and not dirty >> block & 1 and disk[block] != expected[block]
        }
        assert found.wrong == len(wrong)
        told = {
            block
            for one in found.ranges
            for block in range(one.start_bytes // BLOCK_BYTES, (one.start_bytes + one.length_bytes) // BLOCK_BYTES)
        }
        assert told == wrong
        for one in lists:
            one.close()
