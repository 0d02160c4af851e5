"""Compare a merged image with the lists of the images that it was made of, and write its list from theirs.

Nothing gets a new digest: what a block has to be is known from the lists, and an image in which what was read differs
is not published. Blocks that the merge did not write are read only if the image is a copy, or an interrupted run has
written into it. So damage never gets a digest that fits it, and where it is not found by the merge, a verify finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbackup.errors import ChainError
from vbackup.model import BlocksRecord
from vbackup.qemu.qcow2_layer import Extent, Qcow2Layer
from vbackup.repository import block_list
from vbackup.repository.block_list import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
    Algorithm,
    BlockList,
    Segment,
    mask_of,
    runs,
)
from vbackup.repository.block_scan import Scan, difference, structure_digest
from vbackup.repository.composition import Composition, Part


@dataclass(frozen=True)
class Layer:
    """An image that is merged, and its list."""

    path: Path
    backup_id: str
    listed: BlockList


def held(layers: Sequence[Layer], number: int) -> int:
    """Return the mask of the blocks of a segment that one of the images holds."""
    mask = 0
    for layer in layers:
        mask |= layer.listed.segment(number).held
    return mask


def extents(layers: Sequence[Layer]) -> Iterator[tuple[int, int]]:
    """Yield start and length in bytes of the parts of the disk that one of the images holds."""
    for number in Composition([layer.listed for layer in layers]).numbers:
        for start, end in runs(held(layers, number)):
            yield number * SEGMENT_BYTES + start * BLOCK_BYTES, (end - start) * BLOCK_BYTES


def check_image(dev: str, layer: Layer, *, check: Callable[[], None]) -> None:
    """Read everything that an image holds, and compare it with its list. Raises ChainError if it differs."""
    with (
        Qcow2Layer(layer.path) as image,
        Scan(image, layer.listed.algorithm, check=check, is_tolerant=True) as scan,
    ):
        for number in sorted({*layer.listed.numbers, *image.tables()}):
            blocks = difference(layer.listed.segment(number), scan.segment(number))
            if blocks:
                raise _damaged(dev, layer, number, blocks)


class Comparison:
    """Compares a merged image with the lists of its layers."""

    def __init__(
        self, dev: str, image: Qcow2Layer, layers: Sequence[Layer], *, is_whole: bool, check: Callable[[], None]
    ) -> None:
        """``layers``: the newest first. ``is_whole``: everything is read, not only what was merged."""
        self._dev = dev
        self._image = image
        self._layers = layers
        self._composition = Composition([layer.listed for layer in layers])
        self._is_whole = is_whole
        self._check = check
        #: What the lowest image holds keeps the algorithm of its list: most blocks are not read.
        self._algorithm = layers[-1].listed.algorithm

    def write_list(self, path: Path) -> BlocksRecord:
        """Compare, write the list of the image to ``path``, and return what the manifest records of both.

        Raises ChainError if the image is not what the lists say, StorageError, NoSpaceError.
        """
        written = block_list.write(
            path,
            self._segments(),
            virtual_size_bytes=self._image.virtual_size_bytes,
            algorithm=self._algorithm,
        )
        return BlocksRecord(
            written.digest,
            structure_digest(self._image, self._algorithm),
            data_blocks=written.data_blocks,
            zero_blocks=written.zero_blocks,
        )

    def _segments(self) -> Iterator[Segment]:
        scans: dict[int, Scan] = {}
        try:
            for number in sorted({*self._composition.numbers, *self._image.tables()}):
                yield self._segment(number, scans)
        finally:
            for scan in scans.values():
                scan.__exit__(None, None, None)

    def _segment(self, number: int, scans: dict[int, Scan]) -> Segment:
        parts = self._composition.parts(number)
        expected = 0
        data = 0
        for part in parts:
            expected |= part.segment.held
            data |= part.segment.data
        tables = set(self._image.tables())
        found, zeros = _masks(self._image.extents(number)) if number in tables else (0, 0)
        found &= self._within(number)
        wrong = (expected ^ found) | (data & zeros)
        if not wrong:
            for part in parts:
                wrong |= self._compare(number, part, scans)
        if wrong:
            raise self._blame(number, wrong)
        return _joined(number, [self._as_one_algorithm(number, part, scans) for part in parts])

    def _compare(self, number: int, part: Part, scans: dict[int, Scan]) -> int:
        wanted = part.segment.held & self._read(number)
        if not wanted:
            return 0
        return difference(restricted(part.segment, wanted), self._scan(part.algorithm, scans).segment(number, wanted))

    def _as_one_algorithm(self, number: int, part: Part, scans: dict[int, Scan]) -> Segment:
        """Return the blocks with digests of the new list's algorithm: those of another are read twice for it."""
        if part.algorithm.number == self._algorithm.number:
            return part.segment
        wanted = part.segment.held
        found = self._scan(part.algorithm, scans).segment(number, wanted)
        again = self._scan(self._algorithm, scans).segment(number, wanted)
        wrong = difference(part.segment, found) | (found.data ^ again.data)
        if wrong:
            raise self._blame(number, wrong)
        return again

    def _read(self, number: int) -> int:
        """Return the mask of the blocks that are read: what was merged, and the end of a disk that has grown."""
        if self._is_whole:
            return block_list.ALL
        mask = held(self._layers[:-1], number)
        for layer in self._layers[1:]:
            end_block, rest = divmod(layer.listed.virtual_size_bytes, BLOCK_BYTES)
            if rest and end_block // SEGMENT_BLOCKS == number:
                mask |= 1 << end_block % SEGMENT_BLOCKS
        return mask

    def _within(self, number: int) -> int:
        blocks = -(-self._image.virtual_size_bytes // BLOCK_BYTES) - number * SEGMENT_BLOCKS
        return mask_of(0, min(SEGMENT_BLOCKS, max(0, blocks)))

    def _scan(self, algorithm: Algorithm, scans: dict[int, Scan]) -> Scan:
        if algorithm.number not in scans:
            scans[algorithm.number] = Scan(self._image, algorithm, check=self._check, is_tolerant=True)
        return scans[algorithm.number]

    def _blame(self, number: int, wrong: int) -> ChainError:
        """Return the error that names the image from which the first wrong block comes."""
        first = wrong & -wrong
        for place, mask, _ in self._composition.deciding(number):
            if mask & first:
                return _damaged(self._dev, self._layers[place], number, wrong & mask)
        return _damaged(self._dev, self._layers[-1], number, wrong)


def restricted(segment: Segment, mask: int) -> Segment:
    """Return the segment with these of its blocks only."""
    if not segment.held & ~mask:
        return segment
    pieces = []
    for start, end in runs(segment.data & mask):
        first = segment.digest_index(start) * DIGEST_BYTES
        pieces.append(bytes(segment.digests[first : first + (end - start) * DIGEST_BYTES]))
    return Segment(segment.number, segment.held & mask, segment.data & mask, b"".join(pieces))


def _joined(number: int, segments: Sequence[Segment]) -> Segment:
    """Return segments that have no block in common as one."""
    if len(segments) == 1:
        return segments[0]
    held_mask = data = 0
    slots = bytearray(SEGMENT_BLOCKS * DIGEST_BYTES)
    for segment in segments:
        held_mask |= segment.held
        data |= segment.data
        position = 0
        for start, end in runs(segment.data):
            length = (end - start) * DIGEST_BYTES
            slots[start * DIGEST_BYTES : end * DIGEST_BYTES] = segment.digests[position : position + length]
            position += length
    digests = b"".join(bytes(slots[start * DIGEST_BYTES : end * DIGEST_BYTES]) for start, end in runs(data))
    return Segment(number, held_mask, data, digests)


def _masks(found: Sequence[Extent]) -> tuple[int, int]:
    """Return which blocks extents hold, and which of them are stored as zeros."""
    mask = zeros = 0
    for extent in found:
        one = mask_of(extent.start, extent.start + extent.clusters)
        mask |= one
        if extent.offset is None:
            zeros |= one
    return mask, zeros


def _damaged(dev: str, layer: Layer, number: int, blocks: int) -> ChainError:
    start, end = next(runs(blocks))
    first = (number * SEGMENT_BLOCKS + start) * BLOCK_BYTES
    return ChainError(
        f"Disk {dev}: the image {layer.path} of backup {layer.backup_id} is damaged: its content differs from its block"
        f" list from byte {first} of the disk on ({(end - start) * BLOCK_BYTES} bytes). Nothing was merged with it;"
        " 'vbackup verify' shows what else is damaged, 'vbackup check --repair' looks for a good copy."
    )
