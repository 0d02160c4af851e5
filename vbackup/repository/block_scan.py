"""Read what an image itself holds, block by block: to make its list (vbackup.repository.block_list), or to compare.

Images are read by several threads, which digest while they do: both release Python's lock. A block whose content is
zeros is one of zeros, however the image stores it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from vbackup.errors import ChainError
from vbackup.model import BlocksRecord
from vbackup.qemu.qcow2_layer import Extent, Qcow2Layer
from vbackup.repository import block_list
from vbackup.repository.block_list import (
    ALL,
    BLOCK_BYTES,
    DIGEST_BYTES,
    SEGMENT_BLOCKS,
    Algorithm,
    BlockList,
    Segment,
    mask_of,
    runs,
)

#: Gets the number on the disk and the content of a block.
Probe = Callable[[int, memoryview], None]
#: How much is read at a time.
PIECE_BLOCKS = 16
#: How much one thread does before it takes the next.
_BATCH_PIECES = 8
#: Threads for one image.
THREADS = min(4, os.cpu_count() or 1)
#: In place of the digest of a block that cannot be read: no content has it.
UNREADABLE = bytes(DIGEST_BYTES)


class Layer(Protocol):
    """What holds blocks: a qcow2 image without its backing file, or another file that is read like one."""

    @property
    def virtual_size_bytes(self) -> int:
        """Size of the disk."""

    def tables(self) -> Iterator[int]:
        """Yield the numbers of the segments in which it holds something, in ascending order."""

    def extents(self, number: int) -> list[Extent]:
        """Return what it holds in a segment."""

    def read(self, extent: Extent, first: int, clusters: int, buffer: bytearray | None = None) -> memoryview:
        """Return the content of some clusters of an extent of data; it can be in ``buffer``."""


@dataclass(frozen=True)
class _Piece:
    extent: Extent
    start: int  #: number of the first block in its segment
    blocks: int


class Scan:
    """Reads the segments of one image, with several threads. A context manager.

    ``check`` is called between pieces and may raise; ``progress`` gets the number of bytes that were read in all so
    far. ``is_tolerant``: a block that cannot be read has the digest UNREADABLE; otherwise that raises ChainError.
    ``probe`` gets the number on the disk and the content of each block of data, in several threads.
    """

    def __init__(
        self,
        layer: Layer,
        algorithm: Algorithm,
        *,
        check: Callable[[], None],
        progress: Callable[[int], None] = lambda _done_bytes: None,
        is_tolerant: bool = False,
        probe: Probe | None = None,
    ) -> None:
        self._layer = layer
        self._algorithm = algorithm
        self._check = check
        self._progress = progress
        self._is_tolerant = is_tolerant
        self._probe = probe
        self._blocks = -(-layer.virtual_size_bytes // BLOCK_BYTES)
        self._done_bytes = 0
        self._buffers = threading.local()  # one for each thread
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="scan")

    def __enter__(self) -> Scan:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def segments(self) -> Iterator[Segment]:
        """Yield all that the image holds. Raises ChainError."""
        for number in self._layer.tables():
            yield self.segment(number)

    def segment(self, number: int, wanted: int = ALL) -> Segment:
        """Return what the image holds of the blocks of a segment that are set in the mask ``wanted``.

        Raises ChainError if its table cannot be read; see also ``is_tolerant``.
        """
        self._check()
        wanted &= mask_of(0, min(SEGMENT_BLOCKS, max(0, self._blocks - number * SEGMENT_BLOCKS)))
        held = data = 0
        pieces: list[_Piece] = []
        for extent in self._layer.extents(number):
            mask = mask_of(extent.start, extent.start + extent.clusters) & wanted
            held |= mask
            if extent.offset is not None:
                pieces.extend(_pieces(extent, mask))
        batches = [pieces[start : start + _BATCH_PIECES] for start in range(0, len(pieces), _BATCH_PIECES)]
        read = self._pool.map if len(batches) > 1 else map
        digests = []
        for mask, made in read(lambda batch: self._batch(number, batch), batches):
            data |= mask
            digests.append(made)
        self._done_bytes += sum(_read_bytes(piece) for piece in pieces)
        self._progress(self._done_bytes)
        return Segment(number, held, data, b"".join(digests))

    def _batch(self, number: int, pieces: Sequence[_Piece]) -> tuple[int, bytes]:
        """Return which blocks of these pieces are data, and their digests."""
        data, digests = 0, bytearray()
        for piece in pieces:
            self._check()
            for block, digest in enumerate(self._digests(number, piece), piece.start):
                if digest != self._algorithm.zero_block:
                    data |= 1 << block
                    digests += digest
        return data, bytes(digests)

    def _digests(self, number: int, piece: _Piece) -> list[bytes]:
        try:
            content = self._layer.read(piece.extent, piece.start - piece.extent.start, piece.blocks, self._buffer())
        except ChainError:
            if not self._is_tolerant:
                raise
            if piece.blocks == 1:
                return [UNREADABLE]
            singles = (_Piece(piece.extent, piece.start + block, 1) for block in range(piece.blocks))
            return [digest for single in singles for digest in self._digests(number, single)]
        size_bytes = self._layer.virtual_size_bytes - (number * SEGMENT_BLOCKS + piece.start) * BLOCK_BYTES
        if size_bytes < len(content):
            # The disk ends in this block: what the image has after it is nothing that a guest sees. With zeros in its
            # place, the digest stays right when the disk grows.
            content = memoryview(bytes(content[:size_bytes]).ljust(len(content), b"\0"))
        digest = self._algorithm.digest
        blocks = [content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES)]
        digests = [digest(block) for block in blocks]
        if self._probe is not None:
            for place, (block, made) in enumerate(zip(blocks, digests), number * SEGMENT_BLOCKS + piece.start):
                if made != self._algorithm.zero_block:
                    self._probe(place, block)
        return digests

    def _buffer(self) -> bytearray:
        buffer: bytearray | None = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = bytearray(PIECE_BLOCKS * BLOCK_BYTES)
        return buffer


def _pieces(extent: Extent, mask: int) -> Iterator[_Piece]:
    for start, end in runs(mask):
        for first in range(start, end, PIECE_BLOCKS):
            yield _Piece(extent, first, min(PIECE_BLOCKS, end - first))


def _read_bytes(piece: _Piece) -> int:
    return piece.extent.compressed_bytes or piece.blocks * BLOCK_BYTES


def make(
    image: Path,
    path: Path,
    *,
    algorithm: Algorithm,
    check: Callable[[], None],
    progress: Callable[[int], None] = lambda _done_bytes: None,
    probe: Probe | None = None,
) -> BlocksRecord:
    """Write the list of an image to ``path``, and return what the manifest records of both.

    ``check``, ``progress`` and ``probe`` as for Scan. Raises ChainError if the image cannot be read, StorageError,
    NoSpaceError.
    """
    with Qcow2Layer(image) as layer, Scan(layer, algorithm, check=check, progress=progress, probe=probe) as scan:
        written = block_list.write(
            path, scan.segments(), virtual_size_bytes=layer.virtual_size_bytes, algorithm=algorithm
        )
        return BlocksRecord(
            written.digest,
            structure_digest(layer, algorithm),
            data_blocks=written.data_blocks,
            zero_blocks=written.zero_blocks,
        )


def structure_digest(layer: Qcow2Layer, algorithm: Algorithm) -> str:
    """Return the digest of everything in the image that is not content. Raises ChainError."""
    made = algorithm.new()
    for piece in layer.structure():
        made.update(piece)
    return algorithm.text(made)


@dataclass(frozen=True)
class Difference:
    """Blocks of a segment that an image does not have as its list says."""

    number: int
    blocks: int  #: mask


def differences(listed: BlockList, scan: Scan, layer: Layer) -> Iterator[Difference]:
    """Compare an image with its list: yield what differs, segment by segment. Raises ChainError.

    ``scan`` reads ``layer`` with the algorithm of the list.
    """
    for number in sorted({*listed.numbers, *layer.tables()}):
        blocks = difference(listed.segment(number), scan.segment(number))
        if blocks:
            yield Difference(number, blocks)


def difference(expected: Segment, found: Segment, wanted: int = ALL) -> int:
    """Return the mask of the blocks that are different in two segments; ``found`` has only ``wanted`` ones."""
    blocks = ((expected.held ^ found.held) | (expected.data ^ found.data)) & wanted
    if not blocks and expected.data == found.data and expected.digests == found.digests:
        return 0
    for start, end in runs(expected.data & found.data):
        # The digests of a run follow each other in both segments.
        one, other = (each.digest_index(start) * DIGEST_BYTES for each in (expected, found))
        for block in range(start, end):
            if expected.digests[one : one + DIGEST_BYTES] != found.digests[other : other + DIGEST_BYTES]:
                blocks |= 1 << block
            one, other = one + DIGEST_BYTES, other + DIGEST_BYTES
    return blocks
