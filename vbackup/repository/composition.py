"""Put the block lists of a chain together: what a whole disk contains at a backup, without reading an image.

The uppermost image that holds a block decides, as in QEMU. vbackup.repository.block_list has the lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vbackup.repository.block_list import ALL, DIGEST_BYTES, SEGMENT_BLOCKS, Algorithm, BlockList, Segment, runs


@dataclass(frozen=True)
class Part:
    """The blocks of a segment that lists of one algorithm decide."""

    algorithm: Algorithm
    segment: Segment


class Composition:
    """The lists of a disk's chain, newest first, as one list. They have to stay open."""

    def __init__(self, lists: Sequence[BlockList]) -> None:
        self._lists = lists
        self.virtual_size_bytes = lists[0].virtual_size_bytes

    @property
    def numbers(self) -> list[int]:
        """The numbers of the segments in which an image of the chain holds a block, in ascending order."""
        return sorted({number for each in self._lists for number in each.numbers})

    @property
    def data_blocks(self) -> int:
        """How many blocks of data the disk has at most: one that several images hold counts for each."""
        return sum(each.data_blocks for each in self._lists)

    def parts(self, number: int) -> list[Part]:
        """Return what the images hold of a segment: no block twice, one part for each algorithm. Raises ChainError.

        Blocks that are in none read as zeros.
        """
        taken: dict[int, tuple[Algorithm, list[tuple[int, Segment]]]] = {}
        undecided = ALL
        for each in self._lists:
            segment = each.segment(number)
            mask = segment.held & undecided
            if mask:
                undecided &= ~mask
                taken.setdefault(each.algorithm.number, (each.algorithm, []))[1].append((mask, segment))
            if not undecided:
                break
        return [Part(algorithm, _joined(number, sources)) for algorithm, sources in taken.values()]

    def deciding(self, number: int) -> Iterator[tuple[int, int, Segment]]:
        """Yield each image that decides blocks of a segment: its place in the chain, their mask, and its segment.

        Raises ChainError.
        """
        undecided = ALL
        for place, each in enumerate(self._lists):
            segment = each.segment(number)
            mask = segment.held & undecided
            if mask:
                undecided &= ~mask
                yield place, mask, segment


def _joined(number: int, sources: Sequence[tuple[int, Segment]]) -> Segment:
    """Return one segment with these blocks of these segments."""
    if len(sources) == 1 and sources[0][0] == sources[0][1].held:
        return sources[0][1]
    held = data = 0
    slots = bytearray(SEGMENT_BLOCKS * DIGEST_BYTES)
    for mask, segment in sources:
        held |= mask
        data |= mask & segment.data
        for start, end in runs(mask & segment.data):
            # A run of these blocks is one of the segment's digests, too.
            first = segment.digest_index(start) * DIGEST_BYTES
            length = (end - start) * DIGEST_BYTES
            slots[start * DIGEST_BYTES : end * DIGEST_BYTES] = segment.digests[first : first + length]
    digests = b"".join(bytes(slots[start * DIGEST_BYTES : end * DIGEST_BYTES]) for start, end in runs(data))
    return Segment(number, held, data, digests)
