"""Lists of a chain put together: the uppermost image that holds a block decides, as in QEMU."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from vbackup.repository.block_list import (
    ALL,
    BLOCK_BYTES,
    DIGEST_BYTES,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
    Algorithm,
    BlockList,
    Segment,
    algorithm_of,
    best_algorithm,
    mask_of,
    write,
)
from vbackup.repository.composition import Composition

SHA256 = algorithm_of("sha256:", where="here")
OTHER = best_algorithm()

#: What an image holds: block of the disk to its digest, None for zeros.
Layer = dict[int, "bytes | None"]


def digest(number: int) -> bytes:
    return number.to_bytes(DIGEST_BYTES, "big")


def segments(layer: Layer) -> list[Segment]:
    numbers = sorted({block // SEGMENT_BLOCKS for block in layer})
    made = []
    for number in numbers:
        own = {
            block % SEGMENT_BLOCKS: made_of
            for block, made_of in sorted(layer.items())
            if block // SEGMENT_BLOCKS == number
        }
        data = [block for block, made_of in own.items() if made_of is not None]
        made.append(
            Segment(
                number,
                sum(1 << block for block in own),
                sum(1 << block for block in data),
                b"".join(own[block] or b"" for block in data),
            )
        )
    return made


def composed(
    tmp_path: Path, layers: Sequence[tuple[Layer, int, Algorithm]]
) -> tuple[dict[int, tuple[Algorithm, bytes | None]], Composition]:
    """What the composition of lists (newest first) has of each block, by its parts."""
    lists = []
    for place, (layer, size_bytes, algorithm) in enumerate(layers):
        path = tmp_path / f"{place}.blocks"
        write(path, segments(layer), virtual_size_bytes=size_bytes, algorithm=algorithm)
        lists.append(BlockList.open(path))
    composition = Composition(lists)
    found: dict[int, tuple[Algorithm, bytes | None]] = {}
    for number in composition.numbers:
        for part in composition.parts(number):
            for block in range(SEGMENT_BLOCKS):
                if part.segment.held >> block & 1:
                    key = number * SEGMENT_BLOCKS + block
                    assert key not in found
                    is_data = part.segment.data >> block & 1
                    found[key] = (part.algorithm, part.segment.digest_of(block) if is_data else None)
    return found, composition


def expected(layers: Sequence[tuple[Layer, int, Algorithm]]) -> dict[int, tuple[Algorithm, bytes | None]]:
    made: dict[int, tuple[Algorithm, bytes | None]] = {}
    for layer, _, algorithm in reversed(layers):
        made.update({block: (algorithm, made_of) for block, made_of in layer.items()})
    return made


@pytest.mark.parametrize("seed", range(8))
def test_uppermost_image_that_holds_a_block_decides(tmp_path: Path, seed: int) -> None:
    """Any images of a disk that has grown, also with lists of two algorithms."""
    rng = random.Random(seed)
    layers: list[tuple[Layer, int, Algorithm]] = []
    size_bytes = 3 * SEGMENT_BYTES
    for place in range(rng.randint(1, 6)):
        if place and rng.random() < 0.4:
            size_bytes -= rng.randint(1, SEGMENT_BYTES // 2)
        blocks = -(-size_bytes // BLOCK_BYTES)
        layer: Layer = {}
        for _ in range(rng.randint(0, 12)):
            start = rng.randrange(blocks)
            for block in range(start, min(blocks, start + rng.choice((1, 3, 700)))):
                layer[block] = None if rng.random() < 0.3 else digest(rng.getrandbits(100))
        layers.append((layer, size_bytes, rng.choice((SHA256, OTHER))))
    found, composition = composed(tmp_path, layers)
    assert found == expected(layers)
    assert composition.virtual_size_bytes == layers[0][1]


def test_images_that_decide_are_named_with_their_blocks(tmp_path: Path) -> None:
    layers = [
        ({0: digest(1), 2: None}, SEGMENT_BYTES, SHA256),
        ({}, SEGMENT_BYTES, SHA256),
        ({0: digest(3), 1: digest(4), 2: digest(5)}, SEGMENT_BYTES, SHA256),
    ]
    _, composition = composed(tmp_path, layers)
    assert [(place, mask) for place, mask, _ in composition.deciding(0)] == [(0, 0b101), (2, 0b010)]


def test_images_below_one_that_holds_all_are_not_asked(tmp_path: Path) -> None:
    layers = [({}, SEGMENT_BYTES, SHA256), ({0: digest(1)}, SEGMENT_BYTES, SHA256)]
    _, composition = composed(tmp_path, layers)
    write(tmp_path / "all.blocks", [Segment(0, ALL, 0, b"")], virtual_size_bytes=SEGMENT_BYTES, algorithm=SHA256)
    with BlockList.open(tmp_path / "all.blocks") as above:
        lists = [above, *composition._lists]
        assert [part.segment for part in Composition(lists).parts(0)] == [Segment(0, ALL, 0, b"")]


def test_block_in_which_a_smaller_disk_ended_is_its_own(tmp_path: Path) -> None:
    """Its digest is of the block with zeros after the end: that is what the grown disk has there."""
    small_bytes = 5 * BLOCK_BYTES + 100
    layers = [({9: digest(9)}, SEGMENT_BYTES, SHA256), ({5: digest(5)}, small_bytes, SHA256)]
    found, _ = composed(tmp_path, layers)
    assert found == {5: (SHA256, digest(5)), 9: (SHA256, digest(9))}


def test_forty_tebibytes_are_not_walked(tmp_path: Path) -> None:
    """Only segments in which something is held are looked at."""
    size_bytes = 40 << 40
    last = size_bytes // BLOCK_BYTES - 1
    layers = [({last: digest(1)}, size_bytes, SHA256), ({0: digest(2), last: None}, size_bytes, SHA256)]
    found, composition = composed(tmp_path, layers)
    assert composition.numbers == [0, last // SEGMENT_BLOCKS]
    assert found == expected(layers)


def test_run_of_a_whole_segment_is_taken_as_it_is(tmp_path: Path) -> None:
    layer: Layer = {block: digest(block + 1) for block in range(SEGMENT_BLOCKS)}
    found, composition = composed(tmp_path, [(layer, SEGMENT_BYTES, SHA256)])
    assert [part.segment.held for part in composition.parts(0)] == [mask_of(0, SEGMENT_BLOCKS)]
    assert len(found) == SEGMENT_BLOCKS
