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

Numbers are little-endian. The header has 64 bytes, a record 24, a body of a segment at most 258 KiB: a list is written
and read segment by segment, and a file of a terabyte of data is never in memory as a whole.
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from vbackup.errors import ChainError, MissingPackageError
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
#: 2 PiB: QEMU's limit for images with clusters of 64 KiB (QCOW_MAX_L1_SIZE in block/qcow2.h).
_MAX_SIZE_BYTES = 1 << 51
_RUNS = re.compile("1+")
_FEW_RUNS = 16
_PIECE_BYTES = 1024 * 1024
#: A list of up to this size is kept in memory, and its file is not kept open.
_SMALL_BYTES = 64 * 1024
_REMEDY = "'vbackup check' says which backups that concerns; restore the file from a copy of the repository."


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

    Raises ChainError if it is unknown, MissingPackageError if it needs a package that is not installed.
    """
    return _by_number(_NUMBERS.get(text.partition(":")[0], 0), where=where)


def _by_number(number: int, *, where: str) -> Algorithm:
    try:
        return _KNOWN[number]
    except KeyError:
        if number in _NUMBERS.values():
            raise MissingPackageError("blake3", f"{where} has BLAKE3 digests", debian="python3-blake3") from None
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
    end = 0
    for _ in range(_FEW_RUNS):  # an increment has few in a segment: shifts then take a third of the time of a search
        if not mask:
            return
        start = end + (mask & -mask).bit_length() - 1
        mask >>= start - end
        end = start + (~mask & (mask + 1)).bit_length() - 1
        mask >>= end - start
        yield start, end
    if mask:
        for match in _RUNS.finditer(bin(mask << end)[:1:-1]):
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
        data, zeros = segment.data_blocks, SEGMENT_BLOCKS if is_all_zeros else segment.zero_blocks
        index += RECORD.pack(segment.number, 0 if is_all_zeros else offset, data, zeros)
        data_blocks += data
        zero_blocks += zeros
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
    """A list, of which only the index is in memory. A context manager; its methods can be called in several threads.

    It is read, not mapped: a bad sector below a mapping, or a file that somebody truncates, would kill the process.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd
        self._where = f"The block list {path}"
        self._size_bytes = os.fstat(fd).st_size
        self._small = b""
        if self._size_bytes < HEADER.size:
            raise self._damaged("it is too short")
        header = self._read(0, HEADER.size)
        magic, version, number, block_bytes, segment_blocks, size_bytes, offset, records = HEADER.unpack(header)
        if magic != _MAGIC:
            raise self._damaged("it is not a block list")
        if version != _VERSION or (block_bytes, segment_blocks) != (BLOCK_BYTES, SEGMENT_BLOCKS):
            raise ChainError(f"{self._where} has a format that this vbackup does not know; use a newer vbackup.")
        self.algorithm = _by_number(number, where=self._where)
        self.virtual_size_bytes: int = size_bytes
        self._blocks = -(-size_bytes // BLOCK_BYTES)
        if size_bytes > _MAX_SIZE_BYTES or offset + records * RECORD.size != self._size_bytes:
            raise self._damaged("its header does not fit its size")
        if records > -(-self._blocks // SEGMENT_BLOCKS):
            raise self._damaged("its index does not fit the size of the disk")
        self._numbers, self._offsets, self._data_counts, self._zero_counts = (array(code) for code in "QQII")
        self._read_index(offset)
        if self._size_bytes <= _SMALL_BYTES:
            self._small = self._read(0, self._size_bytes)

    @classmethod
    def open(cls, path: Path) -> BlockList:
        """Open the list; its digest is not checked (``digest``).

        Raises ChainError if it is missing, cannot be read, or is no list of this format; MissingPackageError if it has
        BLAKE3 digests, and this Python has no BLAKE3.
        """
        try:
            fd = open_regular(path)
        except OSError as err:
            raise _unreadable(f"The block list {path}", err) from err
        try:
            opened = cls(path, fd)
        except BaseException:
            os.close(fd)
            raise
        if opened._small:  # a chain can have hundreds of small lists, and a process 1024 open files
            opened.close()
        return opened

    def __enter__(self) -> BlockList:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def digest(self, algorithm: Algorithm | None = None) -> str:
        """Return the digest of the whole file, to compare with the one in the manifest. Raises ChainError."""
        algorithm = algorithm or self.algorithm
        made = algorithm.new()
        for start in range(0, self._size_bytes, _PIECE_BYTES):
            made.update(self._read(start, min(_PIECE_BYTES, self._size_bytes - start)))
        return algorithm.text(made)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the segments in which the image holds a block, in ascending order."""
        return list(self._numbers)

    @property
    def data_blocks(self) -> int:
        """Number of blocks of data."""
        return sum(self._data_counts)

    @property
    def zero_blocks(self) -> int:
        """Number of blocks of zeros."""
        return sum(self._zero_counts)

    def segment(self, number: int) -> Segment:
        """Return a segment; one in which the image holds nothing if it is not in the index. Raises ChainError."""
        held, data = self.masks(number)
        digests = b""
        if data:
            place = bisect_left(self._numbers, number)
            digests = self._read(self._offsets[place] + 2 * _MASK_BYTES, self._data_counts[place] * DIGEST_BYTES)
        return Segment(number, held, data, digests)

    def masks(self, number: int) -> tuple[int, int]:
        """Return a segment's masks of the blocks that the image holds, and of those that are data. Raises ChainError.

        The digests, which are nearly all of a list, are not read for that.
        """
        place = bisect_left(self._numbers, number)
        if place == len(self._numbers) or self._numbers[place] != number:
            return 0, 0
        offset = self._offsets[place]
        if offset == 0:
            return ALL, 0
        body = self._read(offset, 2 * _MASK_BYTES)
        held, data = (int.from_bytes(body[start : start + _MASK_BYTES], "little") for start in (0, _MASK_BYTES))
        data_blocks = self._data_counts[place]
        if (
            count(data) != data_blocks
            or data & ~held
            or count(held) - data_blocks != self._zero_counts[place]
            or held >> self._blocks_in(number)
        ):
            raise self._damaged(f"segment {number} does not fit its index")
        return held, data

    def segments(self) -> Iterator[Segment]:
        """Yield all segments in which the image holds a block. Raises ChainError."""
        for number in self._numbers:
            yield self.segment(number)

    def _read_index(self, end: int) -> None:
        """Read the index, which begins where the bodies ``end``."""
        previous, begin = -1, HEADER.size
        step = _PIECE_BYTES // RECORD.size * RECORD.size
        for start in range(end, self._size_bytes, step):
            piece = self._read(start, min(step, self._size_bytes - start))
            for number, offset, data_blocks, zero_blocks in RECORD.iter_unpack(piece):
                blocks = data_blocks + zero_blocks
                is_all_zeros = offset == 0 and data_blocks == 0 and zero_blocks == SEGMENT_BLOCKS
                if number <= previous or not (offset == begin or is_all_zeros):
                    raise self._damaged("its index is not in order")
                if not 0 < blocks <= self._blocks_in(number):
                    raise self._damaged("its index does not fit the size of the disk")
                previous = number
                begin += 0 if is_all_zeros else _body_bytes(data_blocks)
                self._numbers.append(number)
                self._offsets.append(offset)
                self._data_counts.append(data_blocks)
                self._zero_counts.append(zero_blocks)
        if begin != end:
            raise self._damaged("its index does not fit its size")

    def _blocks_in(self, number: int) -> int:
        """Return how many blocks of the disk are in a segment."""
        left: int = self._blocks - number * SEGMENT_BLOCKS
        return min(SEGMENT_BLOCKS, max(0, left))

    def _read(self, offset: int, length: int) -> bytes:
        if self._small:
            return self._small[offset : offset + length]
        assert self._fd is not None, "the list is closed"
        data = b""
        try:
            while len(data) < length and (piece := os.pread(self._fd, length - len(data), offset + len(data))):
                data = data + piece if data else piece
        except OSError as err:
            raise _unreadable(self._where, err) from err
        if len(data) < length:
            raise self._damaged("it is too short")
        return data

    def _damaged(self, reason: str) -> ChainError:
        return ChainError(f"{self._where} is damaged: {reason}. {_REMEDY}")


def most_bytes(virtual_size_bytes: int, *, data_blocks: int, zero_blocks: int) -> int:
    """Return the largest size in bytes that a list with so many blocks can have."""
    segments = min(-(-virtual_size_bytes // SEGMENT_BYTES), data_blocks + zero_blocks)
    return HEADER.size + segments * (RECORD.size + _body_bytes(0)) + data_blocks * DIGEST_BYTES


def _body_bytes(data_blocks: int) -> int:
    return 2 * _MASK_BYTES + data_blocks * DIGEST_BYTES


def _unreadable(where: str, err: OSError) -> ChainError:
    return ChainError(f"{where} cannot be read: {err.strerror or err}. {_REMEDY}")
