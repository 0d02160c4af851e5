"""Write and read block lists (DEV.blocks): what each 64 KiB of a disk contains, as far as one image of it says.

A list has an entry for each block that the image's own layer holds: whether the guest sees zeros there, or data and the
digest of the data. It does not depend on compression, on the order of clusters in the image, or on the image that holds
a block: a merge of images moves entries. vbackup.repository.composition puts the lists of a chain together,
vbackup.repository.block_scan makes a list from an image. vbackup-repository(5) describes the format:

    header      HEADER: magic, version, algorithm, bytes of a block, blocks of a segment, size of the disk in bytes,
                offset and number of the records of the index
    bodies      for each segment that is not all zeros: a bit for each block that the image holds, a bit for each of
                them that is data (the first block is the lowest bit of the first byte), and the digests of the data
    index       RECORD for each segment in which the image holds a block, in ascending order: number of the segment,
                offset of its body (0: all zeros), number of blocks of data, number of blocks of zeros

Numbers are little-endian. A body of a segment has at most 258 KiB: a list is written and read segment by segment,
and a file of a terabyte of data is never in memory as a whole.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from vbackup.errors import ChainError
from vbackup.files import open_regular, storage_errors

#: Suffix of the file beside the image.
SUFFIX = ".blocks"
BLOCK_BYTES = 64 * 1024
#: One L2 table of an image with clusters of 64 KiB.
SEGMENT_BLOCKS = 8192
SEGMENT_BYTES = SEGMENT_BLOCKS * BLOCK_BYTES
DIGEST_BYTES = 32
ALL = (1 << SEGMENT_BLOCKS) - 1
_MASK_BYTES = SEGMENT_BLOCKS // 8
_MAGIC, _VERSION = b"vbblocks", 1
HEADER = struct.Struct("<8sIIIIQQQ16x")
RECORD = struct.Struct("<QQII")
#: The largest size of a file in Linux.
_MAX_SIZE_BYTES = (1 << 63) - 1
_RUNS = re.compile("1+")
_PIECE_BYTES = 1024 * 1024


class Hash(Protocol):
    """What hashlib and blake3 have in common."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Add data."""

    def digest(self) -> bytes:
        """Return the digest of all data."""


@dataclass(frozen=True)
class Algorithm:
    """A digest algorithm, which a list names in its header and a manifest in front of a digest."""

    name: str
    number: int
    new: Callable[[], Hash]
    zero_block: bytes  #: digest of a block of zeros

    def digest(self, data: bytes | memoryview) -> bytes:
        """Return the digest of the data."""
        made = self.new()
        made.update(data)
        return made.digest()

    def text(self, made: Hash) -> str:
        """Return a digest in the form that manifests have, such as "blake3:..."."""
        return f"{self.name}:{made.digest().hex()}"


def _algorithm(name: str, number: int, new: Callable[[], Hash]) -> Algorithm:
    made = new()
    made.update(bytes(BLOCK_BYTES))
    return Algorithm(name, number, new, made.digest())


def _known() -> dict[int, Algorithm]:
    algorithms = [_algorithm("sha256", 2, sha256)]
    try:
        from blake3 import blake3
    except ImportError:
        pass
    else:
        algorithms.append(_algorithm("blake3", 1, blake3))
    return {algorithm.number: algorithm for algorithm in algorithms}


_KNOWN = _known()
_NUMBERS = {"blake3": 1, "sha256": 2}


def best_algorithm() -> Algorithm:
    """Return BLAKE3, which takes a third of the time; SHA-256 where the package blake3 is not installed."""
    return _KNOWN.get(1, _KNOWN[2])


def algorithm_of(text: str, *, where: str) -> Algorithm:
    """Return the algorithm of a digest of a manifest, such as "blake3:..."; ``where`` names it in errors.

    Raises ChainError if it is unknown or needs a package that is not installed.
    """
    return _by_number(_NUMBERS.get(text.partition(":")[0], 0), where=where)


def _by_number(number: int, *, where: str) -> Algorithm:
    try:
        return _KNOWN[number]
    except KeyError:
        if number in _NUMBERS.values():
            raise ChainError(
                f"{where} has BLAKE3 digests, and this vbackup has no BLAKE3: install blake3 (pip install blake3, or"
                " the package python3-blake3)."
            ) from None
        raise ChainError(f"{where} has digests of an unknown kind; use a newer vbackup.") from None


@dataclass(frozen=True)
class Segment:
    """512 MiB of a disk. Bit n of a mask is block n of the segment."""

    number: int
    held: int  #: mask of the blocks that the image holds
    data: int  #: mask of those that are data; the others are zeros
    digests: bytes | memoryview  #: of the data, in order

    @property
    def data_blocks(self) -> int:
        """Number of blocks of data."""
        return len(self.digests) // DIGEST_BYTES

    @property
    def zero_blocks(self) -> int:
        """Number of blocks of zeros."""
        return count(self.held) - self.data_blocks

    def digest_index(self, block: int) -> int:
        """Return the position of the digest of that block among the digests."""
        return count(self.data & ((1 << block) - 1))

    def digest_of(self, block: int) -> bytes:
        """Return the digest of a block of data."""
        index = self.digest_index(block)
        return bytes(self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])


def count(mask: int) -> int:
    """Return the number of bits that are set."""
    return bin(mask).count("1")  # int.bit_count is from Python 3.10


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of bits that are set, in ascending order."""
    if mask:
        for match in _RUNS.finditer(bin(mask)[:1:-1]):
            yield match.span()


def mask_of(start: int, end: int) -> int:
    """Return the mask of the blocks from ``start`` up to, but without, ``end``."""
    return (1 << end) - (1 << start)


@dataclass(frozen=True)
class Written:
    """A list that was written."""

    digest: str  #: of the whole file, in the form that manifests have
    data_blocks: int
    zero_blocks: int


def write(path: Path, segments: Iterable[Segment], *, virtual_size_bytes: int, algorithm: Algorithm) -> Written:
    """Write a new list with mode 0600, without syncing it to storage; an existing file is replaced.

    ``segments`` in ascending order, without empty ones. Raises StorageError, NoSpaceError; what was written stays.
    """
    with storage_errors(f"write {path}"):
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w+b") as file:
            return _write(file, segments, virtual_size_bytes, algorithm)


def _write(file: BinaryIO, segments: Iterable[Segment], virtual_size_bytes: int, algorithm: Algorithm) -> Written:
    file.write(bytes(HEADER.size))
    index = bytearray()
    offset = HEADER.size
    data_blocks = zero_blocks = 0
    for segment in segments:
        if not segment.held:
            continue
        is_all_zeros = segment.held == ALL and not segment.data
        index += RECORD.pack(segment.number, 0 if is_all_zeros else offset, segment.data_blocks, segment.zero_blocks)
        data_blocks += segment.data_blocks
        zero_blocks += segment.zero_blocks
        if not is_all_zeros:
            for mask in (segment.held, segment.data):
                file.write(mask.to_bytes(_MASK_BYTES, "little"))
            file.write(segment.digests)
            offset += 2 * _MASK_BYTES + len(segment.digests)
    file.write(index)
    file.seek(0)
    file.write(
        HEADER.pack(
            *(_MAGIC, _VERSION, algorithm.number, BLOCK_BYTES, SEGMENT_BLOCKS, virtual_size_bytes),
            *(offset, len(index) // RECORD.size),
        )
    )
    file.seek(0)
    made = algorithm.new()
    while piece := file.read(_PIECE_BYTES):
        made.update(piece)
    return Written(algorithm.text(made), data_blocks, zero_blocks)


class BlockList:
    """A list, mapped into memory. A context manager."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self._data = data
        where = f"The block list {path}"
        magic, version, number, block_bytes, segment_blocks, size_bytes, offset, records = HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ChainError(f"{where} is not a block list.")
        if version != _VERSION or (block_bytes, segment_blocks) != (BLOCK_BYTES, SEGMENT_BLOCKS):
            raise ChainError(f"{where} has a format that this vbackup does not know; use a newer vbackup.")
        self.algorithm = _by_number(number, where=where)
        self.virtual_size_bytes: int = size_bytes
        if size_bytes > _MAX_SIZE_BYTES or offset + records * RECORD.size != len(data):
            raise ChainError(f"{where} is damaged: its header does not fit its size.")
        self._index: list[tuple[int, int, int, int]] = [*RECORD.iter_unpack(data[offset:])]
        self._places = {record[0]: place for place, record in enumerate(self._index)}
        self._check_index(where, end=offset)

    @classmethod
    def open(cls, path: Path) -> BlockList:
        """Map the list; its digest is not checked (``digest``).

        Raises ChainError if it is missing, cannot be read, or is no list of this format.
        """
        try:
            fd = open_regular(path)
            try:
                if os.fstat(fd).st_size < HEADER.size:
                    raise ChainError(f"The block list {path} is damaged: it is too short.")
                data = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        except OSError as err:
            raise ChainError(f"The block list {path} cannot be read: {err.strerror or err}.") from err
        try:
            return cls(path, data)
        except BaseException:
            data.close()
            raise

    def __enter__(self) -> BlockList:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._data.close()

    def digest(self, algorithm: Algorithm | None = None) -> str:
        """Return the digest of the whole file, to compare with the one in the manifest."""
        algorithm = algorithm or self.algorithm
        made = algorithm.new()
        for start in range(0, len(self._data), _PIECE_BYTES):
            made.update(self._data[start : start + _PIECE_BYTES])
        return algorithm.text(made)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the segments in which the image holds a block, in ascending order."""
        return [record[0] for record in self._index]

    @property
    def data_blocks(self) -> int:
        """Number of blocks of data."""
        return sum(record[2] for record in self._index)

    @property
    def zero_blocks(self) -> int:
        """Number of blocks of zeros."""
        return sum(record[3] for record in self._index)

    def segment(self, number: int) -> Segment:
        """Return a segment; one in which the image holds nothing if it is not in the index. Raises ChainError."""
        held, data = self.masks(number)
        digests = b""
        if data:
            _, offset, data_blocks, _ = self._index[self._places[number]]
            start = offset + 2 * _MASK_BYTES
            digests = self._data[start : start + data_blocks * DIGEST_BYTES]
        return Segment(number, held, data, digests)

    def masks(self, number: int) -> tuple[int, int]:
        """Return a segment's masks of the blocks that the image holds, and of those that are data. Raises ChainError.

        The digests, which are nearly all of a list, are not read for that.
        """
        place = self._places.get(number)
        if place is None:
            return 0, 0
        _, offset, data_blocks, zero_blocks = self._index[place]
        if offset == 0:
            return ALL, 0
        held, data = (
            int.from_bytes(self._data[start : start + _MASK_BYTES], "little")
            for start in (offset, offset + _MASK_BYTES)
        )
        if count(data) != data_blocks or data & ~held or count(held) - data_blocks != zero_blocks:
            raise ChainError(f"The block list {self.path} is damaged: segment {number} does not fit its index.")
        return held, data

    def segments(self) -> Iterator[Segment]:
        """Yield all segments in which the image holds a block. Raises ChainError."""
        for number in self.numbers:
            yield self.segment(number)

    def _check_index(self, where: str, *, end: int) -> None:
        last = -(-self.virtual_size_bytes // SEGMENT_BYTES) - 1
        previous, begin = -1, HEADER.size
        for number, offset, data_blocks, zero_blocks in self._index:
            is_all_zeros = offset == 0 and data_blocks == 0 and zero_blocks == SEGMENT_BLOCKS
            if not previous < number <= last or not (offset == begin or is_all_zeros):
                raise ChainError(f"{where} is damaged: its index is not in order.")
            previous = number
            begin += 0 if is_all_zeros else 2 * _MASK_BYTES + data_blocks * DIGEST_BYTES
        if begin != end:
            raise ChainError(f"{where} is damaged: its index does not fit its size.")
