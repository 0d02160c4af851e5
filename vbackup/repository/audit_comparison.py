"""Compare what an audit has read of a disk with what the newest backup says of it.

Only blocks count that were clean at the moment of the audit: the next incremental would not copy them, so they have to
be what they were. vbackup.repository.audit_sample chooses them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vbackup.repository.audit_sample import Sample, masks_of
from vbackup.repository.block_list import (
    BLOCK_BYTES,
    SEGMENT_BLOCKS,
    Algorithm,
    Segment,
    best_algorithm,
    count,
    mask_of,
    runs,
)
from vbackup.repository.block_scan import Layer, Scan, difference
from vbackup.repository.composition import Composition

#: The largest number of ranges that are reported: more say nothing new.
MAX_RANGES = 1000


@dataclass(frozen=True)
class Range:
    """A part of the disk that is not what the newest backup says."""

    start_bytes: int
    length_bytes: int
    since: str  #: id of the backup whose image has the part: it has changed after that


@dataclass
class Compared:
    """What a comparison has found, in blocks."""

    clean_data: int = 0  #: of what the backup has data of, how much was clean
    read_data: int = 0  #: of that, how much was compared
    read_zeros: int = 0  #: of what reads as zeros, how much was compared
    dirty: int = 0  #: in the sample, but changed since the backup: not compared
    missing: int = 0  #: in the sample, but not stored
    wrong: int = 0  #: not what the backup says
    ranges: list[Range] = field(default_factory=list)  #: of these, the first MAX_RANGES


@dataclass(frozen=True)
class Known:
    """What the newest backup says of a disk."""

    composition: Composition
    ids: Sequence[str]  #: of the backup of each list, newest first; and of the oldest of the chain, as the last
    size_bytes: int  #: of the disk now


def compare(
    known: Known,
    sample: Sample,
    *,
    dirty: Callable[[int], int],
    copy: Layer,
    check: Callable[[], None],
    progress: Callable[[int], None],
) -> Compared:
    """Compare the blocks of the sample; ``copy`` has them as they were at the moment of the audit.

    ``dirty`` returns the mask of the blocks of a segment that have changed since the backup. ``progress`` gets how many
    bytes were read so far. Raises ChainError if a block list is damaged, or if the copy cannot be read.
    """
    found, composition = Compared(), known.composition
    blocks = -(-known.size_bytes // BLOCK_BYTES)
    scans = _Scans(copy, check=check, progress=progress)
    try:
        for number in sorted({*composition.numbers, *sample.masks}):
            changed = dirty(number)
            _, data = masks_of(composition, number)
            valid = mask_of(0, min(SEGMENT_BLOCKS, max(0, blocks - number * SEGMENT_BLOCKS)))
            found.clean_data += count(data & valid & ~changed)
            wanted = sample.masks.get(number, 0)
            found.dirty += count(wanted & changed)
            if wanted & ~changed:
                _compare_segment(known, number, wanted & ~changed, found=found, scans=scans)
    finally:
        scans.close()
    return found


class _Scans:
    """Scans of one image, one for each algorithm that is needed."""

    def __init__(self, copy: Layer, *, check: Callable[[], None], progress: Callable[[int], None]) -> None:
        self._copy, self._check, self._progress = copy, check, progress
        self._scans: dict[int, Scan] = {}
        self._stored: dict[int, int] = dict.fromkeys(copy.tables(), 0)
        self._read_bytes = 0

    def segment(self, number: int, wanted: int, algorithm: Algorithm) -> Segment:
        """Return what the image holds of these blocks."""
        if number not in self._stored:
            return Segment(number, 0, 0, b"")
        if algorithm.number not in self._scans:
            self._scans[algorithm.number] = Scan(self._copy, algorithm, check=self._check)
        segment = self._scans[algorithm.number].segment(number, wanted)
        self._read_bytes += segment.data_blocks * BLOCK_BYTES
        self._progress(self._read_bytes)
        return segment

    def close(self) -> None:
        """End their threads."""
        for scan in self._scans.values():
            scan.__exit__(None, None, None)


def _compare_segment(known: Known, number: int, wanted: int, *, found: Compared, scans: _Scans) -> None:
    rest, wrong = wanted, 0
    for part in known.composition.parts(number):
        mask = wanted & part.segment.held
        if mask:
            rest &= ~mask
            expected = _only(part.segment, mask)
            wrong |= _compare_part(expected, scans.segment(number, mask, part.algorithm), found)
    if rest:
        # No image holds it: it reads as zeros.
        wrong |= _compare_part(Segment(number, rest, 0, b""), scans.segment(number, rest, best_algorithm()), found)
    if wrong:
        found.wrong += count(wrong)
        _add_ranges(known, number, wrong, found)


def _only(segment: Segment, mask: int) -> Segment:
    """Return the segment with these of its blocks alone."""
    data = segment.data & mask
    digests = b"".join(segment.digest_of(block) for start, end in runs(data) for block in range(start, end))
    return Segment(segment.number, segment.held & mask, data, digests)


def _compare_part(expected: Segment, stored: Segment, found: Compared) -> int:
    """Return the mask of the blocks that are different; what is not stored is only counted."""
    missing = expected.held & ~stored.held
    found.missing += count(missing)
    found.read_data += count(expected.data & ~missing)
    found.read_zeros += count(expected.held & ~expected.data & ~missing)
    return difference(expected, stored) & ~missing


def _add_ranges(known: Known, number: int, wrong: int, found: Compared) -> None:
    rest, owners = wrong, dict[str, int]()
    for place, mask, _ in known.composition.deciding(number):
        owners[known.ids[place]] = wrong & mask
        rest &= ~mask
    owners[known.ids[-1]] = owners.get(known.ids[-1], 0) | rest
    first = number * SEGMENT_BLOCKS
    new = [
        Range(start_bytes, min((first + end) * BLOCK_BYTES, known.size_bytes) - start_bytes, since)
        for since, mask in owners.items()
        for start, end in runs(mask)
        for start_bytes in [(first + start) * BLOCK_BYTES]
    ]
    for each in sorted(new, key=lambda one: one.start_bytes):
        last = found.ranges[-1] if found.ranges else None
        if last is not None and last.since == each.since and last.start_bytes + last.length_bytes == each.start_bytes:
            found.ranges[-1] = Range(last.start_bytes, last.length_bytes + each.length_bytes, last.since)
        elif len(found.ranges) < MAX_RANGES:
            found.ranges.append(each)
