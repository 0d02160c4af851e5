"""Choose at random which blocks of a disk an audit reads, and say what a sample proves.

Two kinds of blocks are sampled, each with the same share. What the newest backup has data of is chosen block by block.
Everything else, which reads as zeros, can be terabytes: it is chosen in pieces, which are larger on a larger disk, so
that neither the sample nor the copy of it grows with the size of the disk. Does no I/O but for the block lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from vbackup.repository.block_list import ALL, BLOCK_BYTES, SEGMENT_BLOCKS, count, mask_of, runs
from vbackup.repository.composition import Composition

#: The least that is read of each kind, in blocks: 16 MiB, which is all of a very small disk.
MIN_BLOCKS = 256
#: How many pieces of zeros, and the least size of one in blocks.
MAX_PIECES, MIN_PIECE_BLOCKS = 1024, 16


@dataclass(frozen=True)
class Sample:
    """The blocks to read: a mask for each segment that has some."""

    masks: Mapping[int, int]

    @property
    def blocks(self) -> int:
        """How many there are."""
        return sum(map(count, self.masks.values()))

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield begin and end of each run of them on the disk, in bytes, in ascending order."""
        for number in sorted(self.masks):
            first = number * SEGMENT_BLOCKS
            for start, end in runs(self.masks[number]):
                yield (first + start) * BLOCK_BYTES, (first + end) * BLOCK_BYTES


def choose(
    known: Composition, *, size_bytes: int, percent: float, is_complete: bool = True, random: Random | None = None
) -> Sample:
    """Return a sample of that share of a disk of this size: at least MIN_BLOCKS of data, and as many of zeros.

    ``known`` is what the newest backup has of it. Unless that ``is_complete``, what it says nothing about is left out,
    because it need not be zeros. Raises ChainError if a block list is damaged.
    """
    random = random or Random()  # noqa: S311 - nobody has to be kept from guessing it
    blocks = -(-size_bytes // BLOCK_BYTES)
    masks = _pieces(blocks, share=percent / 100, random=random)
    data_blocks = known.data_blocks
    share = max(percent / 100, min(1.0, MIN_BLOCKS / data_blocks)) if data_blocks else 0.0
    for number in sorted({*known.numbers, *masks}):
        held, data = masks_of(known, number)
        valid = mask_of(0, min(SEGMENT_BLOCKS, max(0, blocks - number * SEGMENT_BLOCKS)))
        zeros = masks.pop(number, 0) & ~data & valid & (ALL if is_complete else held)
        mask = zeros | _part(data & valid, share, random)
        if mask:
            masks[number] = mask
    return Sample(masks)


def masks_of(known: Composition, number: int) -> tuple[int, int]:
    """Return the masks of the blocks of a segment that a list says something about, and of those that are data."""
    held = data = 0
    for _, mask, segment in known.deciding(number):
        held |= mask
        data |= mask & segment.data
    return held, data


def _pieces(blocks: int, *, share: float, random: Random) -> dict[int, int]:
    """Return masks of pieces of the disk, at random."""
    wanted = min(blocks, max(math.ceil(blocks * share), MIN_BLOCKS))
    piece_blocks = MIN_PIECE_BLOCKS
    while wanted > piece_blocks * MAX_PIECES and piece_blocks < SEGMENT_BLOCKS:
        piece_blocks *= 2  # so that a piece never spans two segments
    pieces = -(-blocks // piece_blocks)
    masks: dict[int, int] = {}
    for piece in random.sample(range(pieces), min(pieces, -(-wanted // piece_blocks))):
        number, start = divmod(piece * piece_blocks, SEGMENT_BLOCKS)
        masks[number] = masks.get(number, 0) | mask_of(start, start + piece_blocks)
    return masks


def _part(mask: int, share: float, random: Random) -> int:
    """Return a random part of a mask. A fraction of a block is rounded at random, so that small segments count too."""
    bits = count(mask)
    wanted = int(bits * share + random.random())
    if wanted >= bits:
        return mask
    if not wanted:
        return 0
    places = [place for start, end in runs(mask) for place in range(start, end)]
    part = bytearray(SEGMENT_BLOCKS // 8)
    for place in random.sample(places, wanted):
        part[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(part, "little")


def chance_to_miss(bad_blocks: int, *, read: int, of: int) -> float:
    """Return the chance that a random sample contains none of this number of blocks."""
    return (1 - read / of) ** bad_blocks if read < of else 0.0


def blocks_found(*, read: int, of: int, chance: float = 0.95) -> int:
    """Return how many bad blocks there have to be so that one is found with that chance. ``read`` is not 0."""
    return 1 if read >= of else max(1, math.ceil(math.log(1 - chance) / math.log1p(-read / of)))
