"""Compare some blocks of a disk with the block lists of its chain: in the images of the chain, and on the disk.

A rollback writes only the blocks that differ (vbackup.operations.rollback). They are compared in the images before
anything is written, so that damage in the repository never reaches the disk, and on the disk after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vbackup.errors import ChainError, DamagedError
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import block_scan, image_check
from vbackup.repository.block_list import (
    BLOCK_BYTES,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
    Algorithm,
    BlockList,
    count,
    mask_of,
    runs,
)
from vbackup.repository.block_scan import Scan
from vbackup.repository.composition import Composition
from vbackup.repository.history import Link

_ZEROS = bytes(BLOCK_BYTES)

#: Masks of blocks by number of the segment.
Blocks = Mapping[int, int]


class Readable(Protocol):
    """A disk of which ranges can be read (vbackup.qemu.nbd_client.NbdClient)."""

    def read(self, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """Yield offset, length and content of the pieces of a range in ascending order; None for zeros."""


@dataclass(frozen=True)
class Point:
    """A disk at a backup: its chain, newest first, with the path and the open list of each image."""

    chain: Sequence[tuple[Link, Path]]
    lists: Sequence[BlockList]

    @property
    def dev(self) -> str:
        """Name of the disk."""
        return self.chain[0][0].image.dev

    @property
    def size_bytes(self) -> int:
        """Virtual size of the disk."""
        return self.chain[0][0].image.virtual_size_bytes


def whole_clusters(blocks: Blocks, cluster_bytes: int) -> dict[int, int]:
    """Return the blocks of all clusters of an image that have one of these: QEMU copies no less into an image.

    block_copy_calculate_cluster_size in QEMU's block/block-copy.c. Clusters have up to 2 MiB.
    """
    blocks_of_cluster = max(1, cluster_bytes // BLOCK_BYTES)
    cluster = mask_of(0, blocks_of_cluster)
    widened = {}
    for number, mask in blocks.items():
        whole = 0
        for first, last in runs(mask):
            begin = first // blocks_of_cluster * blocks_of_cluster
            while begin < last:
                whole |= cluster << begin
                begin += blocks_of_cluster
        widened[number] = whole
    return widened


def of_disk(blocks: Mapping[int, int], size_bytes: int) -> dict[int, int]:
    """Return those of the blocks that a disk of that size has, without empty segments."""
    total = -(-size_bytes // BLOCK_BYTES)
    kept = {number: mask & mask_of(0, _within(number, total)) for number, mask in sorted(blocks.items())}
    return {number: mask for number, mask in kept.items() if mask}


def _within(number: int, total: int) -> int:
    return max(0, min(SEGMENT_BLOCKS, total - number * SEGMENT_BLOCKS))


def extents(blocks: Blocks, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield start and end in bytes of the ranges of a disk that these blocks are, in ascending order."""
    for start_bytes, length_bytes in image_check.ranges(blocks, virtual_size_bytes=size_bytes):
        yield start_bytes, start_bytes + length_bytes


def count_bytes(blocks: Blocks) -> int:
    """Return how much these blocks are, in bytes."""
    return sum(map(count, blocks.values())) * BLOCK_BYTES


def check_images(point: Point, blocks: Blocks, *, check: Callable[[], None], progress: Callable[[int], None]) -> None:
    """Compare the blocks in the images of the chain with the lists. Raises DamagedError, ChainError.

    ``check`` is called between pieces and may raise; ``progress`` gets the number of bytes that were compared so far.
    """
    composed = Composition(point.lists)
    done_bytes = 0
    with ExitStack() as stack:
        scans: dict[int, Scan] = {}
        for number, mask in blocks.items():
            for place, decided, segment in composed.deciding(number):
                wanted = decided & mask
                if not wanted:
                    continue
                if place not in scans:
                    layer = stack.enter_context(Qcow2Layer(point.chain[place][1]))
                    algorithm = point.lists[place].algorithm
                    scans[place] = stack.enter_context(Scan(layer, algorithm, check=check, is_tolerant=True))
                damaged = block_scan.difference(segment, scans[place].segment(number, wanted), wanted)
                if damaged:
                    raise _damaged(point, place, number, damaged)
                done_bytes += count(wanted & segment.data) * BLOCK_BYTES
                progress(done_bytes)


def _damaged(point: Point, place: int, number: int, blocks: int) -> ChainError:
    link, path = point.chain[place]
    start_bytes, length_bytes = next(image_check.ranges({number: blocks}, virtual_size_bytes=point.size_bytes))
    return DamagedError(
        point.dev, image=str(path), backup=link.backup.id, start_bytes=start_bytes, length_bytes=length_bytes
    )


def first_difference(
    point: Point,
    blocks: Blocks,
    disk: Readable,
    *,
    max_read_bytes: int,
    check: Callable[[], None],
    progress: Callable[[int], None],
) -> int | None:
    """Compare the blocks on a disk with the lists; return the first byte of the first block that differs, or None.

    ``check`` is called between reads and may raise; ``progress`` gets the number of bytes that were compared so far.
    """
    composed = Composition(point.lists)
    done_bytes = 0
    for number, mask in blocks.items():
        expected = _expected(composed, number, mask)
        for first, last in runs(mask):
            for begin in range(first, last, max_read_bytes // BLOCK_BYTES):
                check()
                end = min(last, begin + max_read_bytes // BLOCK_BYTES)
                start_bytes = number * SEGMENT_BYTES + begin * BLOCK_BYTES
                length_bytes = min((end - begin) * BLOCK_BYTES, point.size_bytes - start_bytes)
                for block, content in _blocks(disk, start_bytes, length_bytes):
                    if not _is(content, expected.get(begin + block)):
                        return start_bytes + block * BLOCK_BYTES
                done_bytes += length_bytes
                progress(done_bytes)
    return None


def _expected(composed: Composition, number: int, mask: int) -> dict[int, tuple[Algorithm, bytes]]:
    """Return algorithm and digest of each block of data; the others are zeros."""
    found = {}
    for part in composed.parts(number):
        for start, end in runs(part.segment.data & mask):
            for block in range(start, end):
                found[block] = (part.algorithm, part.segment.digest_of(block))
    return found


def _blocks(disk: Readable, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, memoryview | bytes | None]]:
    """Yield each block of a range with its number in it, and its content up to the end of the disk; None for zeros."""
    buffer: bytearray | None = None  # of a block that comes in several pieces
    for offset, length, data in _cut(disk, start_bytes, length_bytes):
        block, at = divmod(offset - start_bytes, BLOCK_BYTES)
        wanted = min(BLOCK_BYTES, length_bytes - block * BLOCK_BYTES)
        if at == 0 and length == wanted:
            yield block, data
            continue
        if at == 0:
            buffer = bytearray(wanted)
        assert buffer is not None
        if data is not None:
            buffer[at : at + length] = data
        if at + length == wanted:
            yield block, bytes(buffer)


def _cut(disk: Readable, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, memoryview | None]]:
    """Yield offset, length and content of pieces none of which goes over the end of a block."""
    for begin, piece_bytes, data in disk.read(start_bytes, length_bytes):
        offset = begin
        while offset < begin + piece_bytes:
            length = min(BLOCK_BYTES - (offset - start_bytes) % BLOCK_BYTES, begin + piece_bytes - offset)
            yield offset, length, None if data is None else data[offset - begin : offset - begin + length]
            offset += length


def _is(content: memoryview | bytes | None, expected: tuple[Algorithm, bytes] | None) -> bool:
    """Return True if a block has the expected digest, or is all zeros without one."""
    if expected is None:
        return content is None or content == _ZEROS[: len(content)]
    if content is None:
        content = _ZEROS
    algorithm, digest = expected
    # The block at the end of the disk is digested as if zeros followed.
    whole = content if len(content) == BLOCK_BYTES else bytes(content) + _ZEROS[len(content) :]
    return algorithm.digest(whole) == digest
