"""Compare a disk at two backups by their block lists alone: which blocks differ, and how. No image is read.

A block that is in no list of a chain reads as zeros, and so does everything beyond the end of the smaller disk. A block
that the same image decides on both sides is the same: chains that share images are compared above those only. What is
left is compared by masks and by the digests of whole segments, so the size of the disk does not matter.
Does no I/O: vbackup.repository.block_list has the lists.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vbackup.repository.block_list import (
    ALL,
    BLOCK_BYTES,
    DIGEST_BYTES,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
    Algorithm,
    Segment,
    count,
    runs,
)

_DIGEST = struct.Struct(f"{DIGEST_BYTES}s")
#: The digits of a binary number for the answers of a comparison.
_DIGITS = bytes.maketrans(b"\0\1", b"01")


class Listed(Protocol):
    """The block list of an image (vbackup.repository.block_list.BlockList)."""

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of its digests."""

    @property
    def virtual_size_bytes(self) -> int:
        """Size of the disk."""

    @property
    def numbers(self) -> Iterable[int]:
        """The numbers of the segments in which the image holds a block."""

    def segment(self, number: int) -> Segment:
        """Return what the image holds of a segment."""


class Kind(Enum):
    """What has become of a block between two backups."""

    DATA = "data"  #: other data than before
    ZERO = "zero"  #: zeros where data was
    NEW = "new"  #: data where zeros were
    UNDECIDED = "undecided"  #: data on both sides, with digests of different algorithms


@dataclass(frozen=True)
class Changes:
    """The blocks of one segment that differ, as masks; no block is in two of them."""

    number: int
    masks: dict[Kind, int]


@dataclass(frozen=True)
class Extent:
    """A range of the disk that differs."""

    start_bytes: int
    length_bytes: int
    kind: Kind


@dataclass(frozen=True)
class _Source:
    """The blocks of a segment that one image decides."""

    mask: int
    algorithm: Algorithm
    segment: Segment

    @property
    def data(self) -> int:
        """Mask of those that are data."""
        return self.mask & self.segment.data


class Comparison:
    """A disk at two backups. The lists have to stay open.

    ``before`` and ``after`` are the lists of the two chains, newest first. An image of both chains has to be the same
    object in both.
    """

    def __init__(self, before: Sequence[Listed], after: Sequence[Listed]) -> None:
        common = 0
        for one, other in zip(reversed(before), reversed(after)):
            if one is not other:
                break
            common += 1
        self._before, self._after = before[: len(before) - common], after[: len(after) - common]
        self._common = before[len(before) - common :]
        self.before_size_bytes, self.after_size_bytes = before[0].virtual_size_bytes, after[0].virtual_size_bytes
        self._size_bytes = max(self.before_size_bytes, self.after_size_bytes)

    def changes(self) -> Iterator[Changes]:
        """Yield the segments in which blocks differ, in ascending order. Raises ChainError for a damaged list."""
        for number in sorted({number for each in (*self._before, *self._after) for number in each.numbers}):
            masks = self._segment(number)
            if masks:
                yield Changes(number, masks)

    def totals(self) -> dict[Kind, int]:
        """Return how many bytes of the disk are of each kind. Raises ChainError for a damaged list."""
        totals = dict.fromkeys(Kind, 0)
        for changes in self.changes():
            start_bytes = changes.number * SEGMENT_BYTES
            for kind, mask in changes.masks.items():
                beyond_bytes = start_bytes + mask.bit_length() * BLOCK_BYTES - self._size_bytes
                totals[kind] += count(mask) * BLOCK_BYTES - max(0, beyond_bytes)
        return totals

    def extents(self) -> Iterator[Extent]:
        """Yield what differs, in ascending order, as ranges that are as long as they can be. Raises ChainError."""
        start = end = 0
        kind = Kind.DATA
        for changes in self.changes():
            first = changes.number * SEGMENT_BLOCKS
            found = sorted((*run, one) for one, mask in changes.masks.items() for run in _runs(mask, first))
            for run_start, run_end, run_kind in found:
                if run_start == end and run_kind is kind:
                    end = run_end
                    continue
                if end > start:
                    yield self._extent(start, end, kind)
                start, end, kind = run_start, run_end, run_kind
        if end > start:
            yield self._extent(start, end, kind)

    def _extent(self, start: int, end: int, kind: Kind) -> Extent:
        end_bytes = min(end * BLOCK_BYTES, self._size_bytes)
        return Extent(start * BLOCK_BYTES, end_bytes - start * BLOCK_BYTES, kind)

    def _segment(self, number: int) -> dict[Kind, int]:
        """Return the masks of the blocks that differ, without empty ones."""
        before, before_rest = _decided(self._before, number, ALL)
        after, after_rest = _decided(self._after, number, ALL)
        # The common images only matter where one side has a block above them and the other has not.
        below, _ = _decided(self._common, number, before_rest ^ after_rest)
        before += _within(below, before_rest)
        after += _within(below, after_rest)
        was, is_now = _data(before), _data(after)
        masks = {Kind.ZERO: was & ~is_now, Kind.NEW: is_now & ~was, Kind.DATA: 0, Kind.UNDECIDED: 0}
        for one in before:
            undecided = one.data & is_now
            for other in after:
                mask = undecided & other.data
                if not mask:
                    continue
                if one.algorithm.number != other.algorithm.number:
                    masks[Kind.UNDECIDED] |= mask
                else:
                    masks[Kind.DATA] |= _different(one.segment, other.segment, mask)
                undecided &= ~mask
                if not undecided:
                    break
        return {kind: mask for kind, mask in masks.items() if mask}


def _decided(lists: Sequence[Listed], number: int, wanted: int) -> tuple[list[_Source], int]:
    """Return which of the ``wanted`` blocks each image decides, and the mask of those that none does."""
    sources = []
    for each in lists:
        if not wanted:
            break
        segment = each.segment(number)
        mask = segment.held & wanted
        if mask:
            wanted &= ~mask
            sources.append(_Source(mask, each.algorithm, segment))
    return sources, wanted


def _within(sources: Sequence[_Source], mask: int) -> list[_Source]:
    return [_Source(one.mask & mask, one.algorithm, one.segment) for one in sources if one.mask & mask]


def _data(sources: Sequence[_Source]) -> int:
    data = 0
    for one in sources:
        data |= one.data
    return data


def _different(one: Segment, other: Segment, mask: int) -> int:
    """Return those blocks of the mask, all of which are data in both segments, whose digests differ."""
    first, second = _digests(one, mask), _digests(other, mask)
    if first == second:
        return 0
    answers = bytes(map(operator.ne, _DIGEST.iter_unpack(first), _DIGEST.iter_unpack(second))).translate(_DIGITS)
    digits = bytearray(b"0" * SEGMENT_BLOCKS)
    done = 0
    for start, end in runs(mask):
        digits[start:end] = answers[done : done + end - start]
        done += end - start
    digits.reverse()  # the first block is the lowest bit
    return int(digits, 2)


def _digests(segment: Segment, mask: int) -> bytes | bytearray | memoryview:
    """Return the digests of the blocks of the mask, in order."""
    if mask == segment.data:
        return segment.digests
    slots = bytearray(SEGMENT_BLOCKS * DIGEST_BYTES)
    done = 0
    for start, end in runs(segment.data):
        length = (end - start) * DIGEST_BYTES
        slots[start * DIGEST_BYTES : end * DIGEST_BYTES] = segment.digests[done : done + length]
        done += length
    return b"".join(slots[start * DIGEST_BYTES : end * DIGEST_BYTES] for start, end in runs(mask))


def _runs(mask: int, first: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of the mask, counted in blocks of the disk."""
    return ((first + start, first + end) for start, end in runs(mask))
