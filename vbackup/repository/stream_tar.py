"""Write and read the members of a stream: a POSIX tar archive (pax), of regular files with plain names only.

    UUID/ID/manifest.json      the manifest comes first
    UUID/ID/domain.xml ...     the other files of the backup
    UUID/ID/vda.blocks         the block list of each disk, and its image
    UUID/ID/vda.qcow2
    UUID/ID/SHA256SUMS         the digests of all members before it, as sha256sum(1) writes them: the end of the backup

The names are those of a repository: unpacked there by any tar, it is the backup. A stream may come from a broken or
hostile place, so the reader accepts what the writer writes and nothing else: a header of any other kind ends it, before
memory or room is given to it. vbackup.operations.stream_restore decides which members there have to be.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vbackup.errors import StreamError

SUMS = "SHA256SUMS"
#: Streams end at a multiple of this, as tar(1) ends them.
RECORD_BYTES = 20 * 512
BLOCK_BYTES = 512
PIECE_BYTES = 1024 * 1024
#: The most zeros between streams: storage such as tape pads its last block with zeros.
MAX_ZEROS_BYTES = 64 * 1024 * 1024
#: The extended header of a member of 8 GiB or more takes one block.
_MAX_EXTENDED_BYTES = 512
#: No file is larger: the largest size of an image in the formats that QEMU writes.
MAX_MEMBER_BYTES = 1 << 62

Write = Callable[["bytes | memoryview"], object]
Read = Callable[[int], bytes]  #: returns at most so many bytes; none at the end of the stream


class Writer:
    """Writes one stream. ``write`` has to write all that it gets, or raise."""

    def __init__(self, write: Write, prefix: str, *, time_s: int) -> None:
        self._write, self._prefix, self._time_s = write, prefix, time_s
        self._sums: list[str] = []
        self._written_bytes = 0

    def add(self, name: str, size_bytes: int, pieces: Iterator[bytes | memoryview]) -> None:
        """Write a member. Raises StreamError if the pieces have another size together; the stream is broken then."""
        sha256, left_bytes = hashlib.sha256(), size_bytes
        self._put(self._header(name, size_bytes))
        for piece in pieces:
            left_bytes -= len(piece)
            if left_bytes < 0:
                break
            sha256.update(piece)
            self._put(piece)
        if left_bytes:
            raise StreamError(f"{self._prefix}/{name} has another size than {size_bytes} bytes: it was changed.")
        self._put(bytes(-size_bytes % BLOCK_BYTES))
        self._sums.append(f"{sha256.hexdigest()}  {self._prefix}/{name}\n")

    def end(self) -> None:
        """Write the digests, which end the backup, and the end of the archive."""
        sums = "".join(self._sums).encode()
        self.add(SUMS, len(sums), iter([sums]))
        self._put(bytes(2 * BLOCK_BYTES))
        self._put(bytes(-self._written_bytes % RECORD_BYTES))

    def _header(self, name: str, size_bytes: int) -> bytes:
        member = tarfile.TarInfo(f"{self._prefix}/{name}")
        member.size, member.mode, member.mtime = size_bytes, 0o600, self._time_s
        return member.tobuf(tarfile.PAX_FORMAT)

    def _put(self, data: bytes | memoryview) -> None:
        self._write(data)
        self._written_bytes += len(data)


@dataclass(frozen=True)
class Member:
    """What the header of a member says; nothing of it has been checked but its form."""

    name: str
    size_bytes: int


class Reader:
    """Reads the members of a stream, or of several that follow each other, in order."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._sums: list[str] = []

    def first(self) -> Member | None:
        """Return the first member of the next stream; None if there is none. Zeros between streams are skipped.

        Raises StreamError, also if there is no end of the zeros.
        """
        self._sums = []
        for _ in range(MAX_ZEROS_BYTES // BLOCK_BYTES):
            block = self._block(is_end_allowed=True)
            if block is None:
                return None
            if block.count(0) != len(block):
                return self._member(block)
        raise StreamError(f"There are only zeros, {MAX_ZEROS_BYTES // 1024**2} MiB of them, where a stream should be.")

    def next(self) -> Member:
        """Return the next member. Raises StreamError, also where the archive ends: a backup ends before that."""
        block = self._block()
        assert block is not None
        if block.count(0) == len(block):
            raise StreamError(f"The stream ends without {SUMS}, so it is not a backup: its writer did not finish.")
        return self._member(block)

    def content(self, member: Member, *, is_summed: bool = True) -> Iterator[bytes]:
        """Yield the content of the member that was just returned, to the end. Raises StreamError."""
        sha256, left_bytes = hashlib.sha256(), member.size_bytes
        while left_bytes:
            piece = self._read(min(left_bytes, PIECE_BYTES))
            if not piece:
                raise _cut()
            left_bytes -= len(piece)
            sha256.update(piece)
            yield piece
        self._exactly(-member.size_bytes % BLOCK_BYTES)
        if is_summed:
            self._sums.append(f"{sha256.hexdigest()}  {member.name}\n")

    def small(self, member: Member, *, max_bytes: int, is_summed: bool = True) -> bytes:
        """Return the content of a member. Raises StreamError if it is larger."""
        if member.size_bytes > max_bytes:
            raise StreamError(f"{_shown(member.name)} has {member.size_bytes} bytes, more than vbackup ever writes.")
        return b"".join(self.content(member, is_summed=is_summed))

    def check_sums(self, member: Member) -> None:
        """Read the last member of a backup. Raises StreamError if a member before it is not what was written."""
        expected = "".join(self._sums).encode()
        found = self.small(member, max_bytes=len(expected), is_summed=False)
        if found != expected:
            theirs = found.decode(errors="replace").splitlines(keepends=True)
            wrong = next((mine for mine, other in zip(self._sums, theirs) if mine != other), f"  {member.name}")
            name = wrong.partition("  ")[2].strip()
            raise StreamError(f"{_shown(name)} is damaged in the stream: its digest is not the one in {SUMS}.")

    def end(self) -> None:
        """Read the end of the archive after the last member. Raises StreamError."""
        for _ in range(2):
            block = self._block()
            if block is None or block.count(0) != len(block):
                raise StreamError(f"Something follows {SUMS} in the stream, which vbackup never writes.")

    def _member(self, block: bytes) -> Member:
        header = _parsed(block)
        size_bytes = header.size
        if header.type == tarfile.XHDTYPE:
            if not 0 < size_bytes <= _MAX_EXTENDED_BYTES:
                raise StreamError(f"The stream has an extended header of {size_bytes} bytes; vbackup never writes one.")
            extended = self._exactly(BLOCK_BYTES)[:size_bytes]
            size_bytes = _size_of(extended)
            following = self._block()
            assert following is not None
            header = _parsed(following)
        if header.type != tarfile.REGTYPE or header.linkname or not 0 <= size_bytes <= MAX_MEMBER_BYTES:
            raise StreamError(f"The stream has a member {_shown(header.name)} that is no plain file.")
        return Member(header.name, size_bytes)

    def _block(self, *, is_end_allowed: bool = False) -> bytes | None:
        block = self._read(BLOCK_BYTES)
        if not block and is_end_allowed:
            return None
        return block if len(block) == BLOCK_BYTES else block + self._exactly(BLOCK_BYTES - len(block))

    def _exactly(self, size_bytes: int) -> bytes:
        found = b""
        while len(found) < size_bytes:
            piece = self._read(size_bytes - len(found))
            if not piece:
                raise _cut()
            found += piece
        return found


def _cut() -> StreamError:
    return StreamError("The stream is cut off, so it is not a backup: nothing was kept of it.")


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, ValueError, OverflowError) as err:
        raise StreamError(f"This is no stream of vbackup, or a part of it is missing: {err}.") from err


def _size_of(extended: bytes) -> int:
    """Return the size in an extended header, which has nothing else: "22 size=8589934592" and a newline."""
    length, _, record = extended.partition(b" ")
    key, _, value = record.partition(b"=")
    digits = value[:-1]
    if (
        key != b"size"
        or length != str(len(extended)).encode()
        or value[-1:] != b"\n"
        or not digits.isdigit()
        or len(digits) > len(str(MAX_MEMBER_BYTES))
    ):
        text = _shown(extended.decode(errors="replace"))
        raise StreamError(f"The stream has an extended header {text}, which vbackup never writes.")
    return int(digits)


def _shown(name: str) -> str:
    return repr(name[:200])
