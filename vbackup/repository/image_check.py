"""Read one image of a backup, whole or a random part of it, and compare it with its manifest and its block list.

Unlike a restore, which refuses the first thing that is wrong (vbackup.repository.verify), this finds all of it: what
kind of damage there is, and in which blocks of the disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vbackup.errors import ChainError, StorageError
from vbackup.qemu.qcow2_layer import Extent, Qcow2Layer
from vbackup.repository import block_list, verify
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BYTES, BlockList, Segment, mask_of, runs
from vbackup.repository.block_scan import PIECE_BLOCKS, Scan, difference
from vbackup.repository.history import Link
from vbackup.repository.verification import Kind


@dataclass(frozen=True)
class Finding:
    """Damage of an image."""

    kind: Kind
    reason: str  #: a sentence
    blocks: Mapping[int, int] = field(default_factory=dict)  #: masks by segment; empty: all of the image


@dataclass(frozen=True)
class ImageCheck:
    """What was found in an image."""

    findings: tuple[Finding, ...]
    data_blocks: int  #: how many the image should have
    read_blocks: int  #: how many of them were read

    @property
    def is_whole(self) -> bool:
        """True if every block was read."""
        return self.read_blocks == self.data_blocks


@dataclass(frozen=True)
class Watch:
    """Who follows the reading of an image."""

    before: Callable[[int], None]  #: is called with a number of bytes before they are read; may wait, and may raise
    percent: float = 100.0  #: of the blocks to read
    random: random.Random = field(default_factory=random.SystemRandom)  #: chooses them


def check(path: Path, link: Link, watch: Watch) -> ImageCheck:
    """Return what is damaged of the image at ``path``, which is the one of ``link``.

    Of an image without a block list the whole file is read, whatever the percentage is. Raises what ``watch`` raises.
    """
    blocks = link.image.blocks
    expected = max(1, link.image.file_size_bytes // BLOCK_BYTES) if blocks is None else blocks.data_blocks
    trouble = _trouble(path, link)
    if trouble is not None:
        return ImageCheck((Finding(Kind.IMAGE, trouble),), expected, 0)
    try:
        verify.check_header(path, link)
    except ChainError as err:
        return ImageCheck((Finding(Kind.STRUCTURE, str(err)),), expected, 0)
    if blocks is None:
        return _check_digest(path, link, watch, expected)
    findings: list[Finding] = []
    read_blocks = 0
    try:
        with Qcow2Layer(path) as layer:
            try:
                verify.check_structure(layer, link)
            except ChainError as err:
                findings.append(Finding(Kind.STRUCTURE, str(err)))
            try:
                with verify.opened_list(path, link) as listed:
                    damaged, read_blocks = _compare(listed, _Watched(layer, watch), watch)
            except ChainError as err:
                findings.append(Finding(Kind.LIST, str(err)))
            else:
                if damaged:
                    findings.append(Finding(Kind.CONTENT, str(_content_error(path, link)), damaged))
    except ChainError as err:
        findings.append(Finding(Kind.STRUCTURE, str(err)))
    return ImageCheck(tuple(findings), expected, read_blocks)


def ranges(blocks: Mapping[int, int], *, virtual_size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield start and length in bytes of the parts of a disk that these blocks are; those that touch are one."""
    start = end = -1
    for number in sorted(blocks):
        for first, last in runs(blocks[number]):
            begin_bytes = number * SEGMENT_BYTES + first * BLOCK_BYTES
            if begin_bytes != end:
                if start >= 0:
                    yield start, end - start
                start = begin_bytes
            end = number * SEGMENT_BYTES + last * BLOCK_BYTES
    if start >= 0:
        yield start, max(1, min(end, virtual_size_bytes) - start)


def _trouble(path: Path, link: Link) -> str | None:
    """Return why a file cannot be the image, without reading it."""
    try:
        size_bytes = path.lstat().st_size
    except OSError as err:
        return f"The image {path} cannot be read: {err.strerror or err}."
    if size_bytes != link.image.file_size_bytes:
        return str(
            verify.damaged(
                path, link, f"it has {size_bytes} bytes instead of {link.image.file_size_bytes}, as if it was cut off"
            )
            if size_bytes < link.image.file_size_bytes
            else verify.damaged(path, link, f"it has {size_bytes} bytes instead of {link.image.file_size_bytes}")
        )
    return None


def _content_error(path: Path, link: Link) -> ChainError:
    return verify.damaged(path, link, "its content differs from its block list")


def _check_digest(path: Path, link: Link, watch: Watch, expected: int) -> ImageCheck:
    done_bytes = 0

    def progress(now_bytes: int) -> None:
        nonlocal done_bytes
        watch.before(now_bytes - done_bytes)
        done_bytes = now_bytes

    try:
        verify.check_digest(path, link, check=lambda: None, progress=progress)
    except (ChainError, StorageError) as err:
        return ImageCheck((Finding(Kind.IMAGE, str(err)),), expected, expected)
    return ImageCheck((), expected, expected)


class _Watched:
    """A layer whose reading is watched."""

    def __init__(self, layer: Qcow2Layer, watch: Watch) -> None:
        self._layer, self._watch = layer, watch
        self.virtual_size_bytes = layer.virtual_size_bytes

    def tables(self) -> Iterator[int]:
        """As Qcow2Layer."""
        return self._layer.tables()

    def extents(self, number: int) -> list[Extent]:
        """As Qcow2Layer."""
        return self._layer.extents(number)

    def read(self, extent: Extent, first: int, clusters: int, buffer: bytearray | None = None) -> memoryview:
        """As Qcow2Layer, after the watch has had its say."""
        self._watch.before(extent.compressed_bytes or clusters * BLOCK_BYTES)
        return self._layer.read(extent, first, clusters, buffer)


def _compare(listed: BlockList, layer: _Watched, watch: Watch) -> tuple[dict[int, int], int]:
    """Return the blocks that differ, and how many blocks of data were read."""
    part = _Part(listed, watch)
    damaged: dict[int, int] = {}
    read_blocks = 0
    tables = frozenset(layer.tables())
    with Scan(layer, listed.algorithm, check=lambda: None, is_tolerant=True) as scan:
        for number in sorted({*listed.numbers, *tables}):
            expected = listed.segment(number)
            wanted = part.of(expected)
            read_blocks += block_list.count(expected.data & wanted)
            try:
                found = scan.segment(number, wanted) if number in tables else Segment(number, 0, 0, b"")
            except ChainError:  # its table cannot be read
                damaged[number] = expected.held or block_list.ALL
                continue
            if blocks := difference(expected, found, wanted):
                damaged[number] = blocks
    return damaged, read_blocks


class _Part:
    """A random part of the blocks of an image: pieces of data that follow each other, and all that is zeros."""

    def __init__(self, listed: BlockList, watch: Watch) -> None:
        self._watch = watch
        with_data = [number for number in listed.numbers if listed.segment(number).data]
        #: At least one piece is read, however small the image is.
        self._certain = watch.random.choice(with_data) if with_data else -1

    def of(self, segment: Segment) -> int:
        """Return the mask of the blocks to read of a segment."""
        if self._watch.percent >= 100:  # noqa: PLR2004
            return block_list.ALL
        pieces = [
            (first, min(first + PIECE_BLOCKS, end))
            for start, end in runs(segment.data)
            for first in range(start, end, PIECE_BLOCKS)
        ]
        chosen = [piece for piece in pieces if self._watch.random.random() * 100 < self._watch.percent]
        if not chosen and segment.number == self._certain:
            chosen = [self._watch.random.choice(pieces)]
        mask = block_list.ALL & ~segment.data
        for start, end in chosen:
            mask |= mask_of(start, end)
        return mask
