"""Read an NBD export of QEMU: what the guest would read, and which blocks are allocated, zeros or dirty.

Only what reading needs: the fixed newstyle handshake, TLS, one metadata context, and structured replies, in which the
server describes zeros instead of sending them. Nothing that a server says is trusted: lengths, offsets and numbers are
checked before anything is allocated for them or repeated because of them, and each request has a deadline.
Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.

Why no library: libnbd's Python module is compiled against libnbd and is not on PyPI, so a vbackup in a virtual
environment could not have it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from vbackup.errors import MalformedError, StorageError
from vbackup.qemu.nbd_address import NbdAddress

if TYPE_CHECKING:
    import ssl

#: How much is asked for at a time; QEMU takes up to 32 MiB.
MAX_READ_BYTES = 4 * 1024 * 1024
#: How long a request may take, so that hanging storage, or a server that drips, does not hang vbackup for ever.
TIMEOUT_S = 600.0
#: For how much the blocks are asked at a time: lengths of NBD have 32 bits.
MAX_BLOCKS_BYTES = 4 * 1024 * 1024 * 1024 - 64 * 1024
#: Names of metadata contexts: base:allocation, and the prefix of a bitmap's.
ALLOCATION, BITMAP_PREFIX = "base:allocation", "qemu:dirty-bitmap:"
#: Flags of base:allocation, and of a bitmap (NBD_STATE_HOLE, NBD_STATE_ZERO; NBD_STATE_DIRTY in QEMU's nbd.h).
HOLE, ZERO, DIRTY = 1, 2, 1

_GREETING = struct.Struct(">8s8sH")
_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION = struct.Struct(">8sII")
_OPTION_STARTTLS, _OPTION_GO, _OPTION_STRUCTURED_REPLY, _OPTION_SET_META_CONTEXT = 5, 7, 8, 10
_OPTION_REPLY, _OPTION_REPLY_MAGIC = struct.Struct(">QIII"), 0x3E889045565A9
_ACK, _INFO, _META_CONTEXT, _ERROR_BIT = 1, 3, 4, 1 << 31
_INFO_EXPORT, _OF_EXPORT = struct.Struct(">HQH"), 0
#: What a server may say to an option: a text of NBD has up to 4096 bytes, and QEMU sends five kinds of information.
_MAX_OPTION_BYTES, _MAX_OPTION_REPLIES = 64 * 1024, 64
_REQUEST, _REQUEST_MAGIC = struct.Struct(">IHHQQI"), 0x25609513
_READ, _DISCONNECT, _BLOCK_STATUS = 0, 2, 7
_CHUNK, _CHUNK_MAGIC = struct.Struct(">IHHQI"), 0x668E33EF
_DONE, _NONE, _DATA, _HOLE_CHUNK, _STATUS_CHUNK, _CHUNK_ERROR_BIT = 1, 0, 1, 2, 5, 1 << 15
_OFFSET, _HOLE_RANGE, _ERROR, _NUMBER = (
    struct.Struct(">Q"),
    struct.Struct(">QI"),
    struct.Struct(">IH"),
    struct.Struct(">I"),
)
_EXTENT = struct.Struct(">II")
#: The longest description of blocks: QEMU's has 1 MiB (NBD_MAX_BLOCK_STATUS_EXTENTS in nbd/server.c).
_MAX_STATUS_BYTES = _NUMBER.size + 2 * 1024 * 1024
#: The longest error chunk: the code, the length of a text, and the text.
_MAX_ERROR_BYTES = _ERROR.size + 4096 + _OFFSET.size
#: errno of ssl.SSLWantReadError: SSL_ERROR_WANT_READ, without importing ssl.
_SSL_WANT_READ = 2
#: The largest export: QEMU's offsets are signed.
_MAX_SIZE_BYTES = 2**63 - 1


class NbdClient:
    """A connection to one export. A context manager; one thread at a time may use it.

    Entering raises StorageError if the server cannot be reached, and MalformedError if it refuses the export or is no
    NBD server of QEMU's kind. After an error of a request, the connection is closed.
    """

    def __init__(
        self,
        address: NbdAddress,
        *,
        context: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """``context``: the metadata context that ``blocks`` describes. ``tls`` is needed where the address has TLS.

        ``timeout_s`` is the limit of the handshake, and of each request.
        """
        self._address, self._context, self._tls, self._timeout_s = address, context, tls, timeout_s
        self._export = address.export
        self._handle = 0
        self._context_id = -1
        self._size_bytes = -1
        self._deadline = 0.0

    def __enter__(self) -> NbdClient:
        self._begin()
        try:
            self._socket = self._address.connect(self._timeout_s)
            try:
                self._negotiate()
            except BaseException:
                self._socket.close()
                raise
        except OSError as err:
            raise StorageError(f"The NBD server does not export {self._export}: {_words(err)}.") from err
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._socket:
            try:
                self._socket.settimeout(1)  # a server that takes nothing is left without a word
                self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
            except (OSError, ValueError):
                return  # it has ended

    @property
    def size_bytes(self) -> int:
        """Size of the export."""
        return self._size_bytes

    def fileno(self) -> int:
        """Return the descriptor of the connection, for poll(2): between requests it is readable when it has ended."""
        return self._socket.fileno()

    def has_ended(self) -> bool:
        """Return True if the server has closed the connection, on which no request is waiting."""
        try:
            self._socket.settimeout(0)
            self._socket.recv(1)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as err:  # TLS has messages without data: ssl.SSLWantReadError
            return err.errno != _SSL_WANT_READ
        return True  # the end, or what no server may send

    def shut_down(self) -> None:
        """End the connection from another thread: the request that waits fails at once."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended

    def read(self, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """Yield the content of a range in ascending order: offset, length and content of each piece, None for zeros.

        ``length_bytes`` is at most MAX_READ_BYTES. The pieces are those of QEMU, of any length. Raises StorageError if
        QEMU cannot read it, MalformedError if the reply is not one to this request.
        """
        pieces = []
        with self._request(_READ, start_bytes, length_bytes, what="read"):
            missing_bytes = length_bytes
            for kind, payload in self._chunks(_OFFSET.size + length_bytes):
                offset, piece_bytes, data = self._piece(kind, payload)
                missing_bytes -= piece_bytes
                if missing_bytes < 0 or piece_bytes == 0:
                    raise self._wrong("more, or less, than was asked for")
                pieces.append((offset, piece_bytes, data))
            pieces.sort(key=lambda piece: piece[0])
            covered = start_bytes
            for offset, piece_bytes, _ in pieces:
                if offset != covered:
                    raise self._wrong("something else than was asked for")
                covered += piece_bytes
            if missing_bytes:
                raise self._wrong("less than was asked for")
        yield from pieces

    def blocks(self, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Yield offset, length and flags (HOLE, ZERO, DIRTY) of the blocks of a range, as the context describes them.

        In ascending order, without gaps, and cut at the ends of the range, which may have any length. Neighbours can
        have the same flags. It asks as it is consumed. Raises as ``read``.
        """
        at, end = start_bytes, start_bytes + length_bytes
        while at < end:
            for extent_bytes, flags in self._described(at, min(end - at, MAX_BLOCKS_BYTES)):
                yield at, min(extent_bytes, end - at), flags
                at += extent_bytes
                if at >= end:
                    return

    def _described(self, start_bytes: int, length_bytes: int) -> list[tuple[int, int]]:
        """Return lengths and flags of the first blocks of a range: at least one of them, the last can reach beyond."""
        extents: list[tuple[int, int]] = []
        with self._request(_BLOCK_STATUS, start_bytes, length_bytes, what="described"):
            for kind, payload in self._chunks(_MAX_STATUS_BYTES):
                if kind != _STATUS_CHUNK or extents or len(payload) % _EXTENT.size != _NUMBER.size:
                    raise self._wrong(f"a chunk of type {kind}")
                if _NUMBER.unpack_from(payload) != (self._context_id,):
                    raise self._wrong("another metadata context than was asked for")
                extents = list(_EXTENT.iter_unpack(payload[_NUMBER.size :]))
            *inner, (last_bytes, _) = extents or [(0, 0)]
            before_last_bytes = sum(extent_bytes for extent_bytes, _ in inner)
            if not all(extent_bytes for extent_bytes, _ in extents) or not extents:
                raise self._wrong("blocks without a length")
            if before_last_bytes >= length_bytes or start_bytes + before_last_bytes + last_bytes > self._size_bytes:
                raise self._wrong("blocks beyond the end")
        return extents

    def _piece(self, kind: int, payload: memoryview) -> tuple[int, int, memoryview | None]:
        """Return offset, length and content of a chunk of a read."""
        if kind == _DATA and len(payload) >= _OFFSET.size:
            (offset,) = _OFFSET.unpack_from(payload)
            return offset, len(payload) - _OFFSET.size, payload[_OFFSET.size :]
        if kind == _HOLE_CHUNK and len(payload) == _HOLE_RANGE.size:
            offset, hole_bytes = _HOLE_RANGE.unpack(payload)
            return offset, hole_bytes, None
        raise self._wrong(f"a chunk of type {kind} with {len(payload)} bytes")

    @contextmanager
    def _request(self, kind: int, start_bytes: int, length_bytes: int, *, what: str) -> Iterator[None]:
        """Send a request; the block receives the whole reply. The connection is closed if that fails."""
        if not 0 <= start_bytes < start_bytes + length_bytes <= self._size_bytes:
            raise ValueError(f"{length_bytes} bytes at {start_bytes} are not in {self._size_bytes} bytes")
        self._handle += 1
        self._begin()
        try:
            self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, kind, self._handle, start_bytes, length_bytes))
            yield
        except OSError as err:
            self._socket.close()
            raise StorageError(f"{self._export} cannot be {what} at byte {start_bytes}: {_words(err)}.") from err
        except MalformedError:
            self._socket.close()
            raise

    def _chunks(self, max_bytes: int) -> Iterator[tuple[int, memoryview]]:
        """Yield type and payload of each chunk of a reply, which have at most this many bytes. Raises OSError."""
        flags = 0
        while not flags & _DONE:
            magic, flags, kind, handle, length = _CHUNK.unpack(self._receive(_CHUNK.size))
            is_error = bool(kind & _CHUNK_ERROR_BIT)
            if magic != _CHUNK_MAGIC or handle != self._handle:
                raise self._wrong("no chunk of the reply")
            if length > (_MAX_ERROR_BYTES if is_error else max_bytes) or (is_error and length < _ERROR.size):
                raise self._wrong(f"a chunk of {length} bytes")
            payload = self._receive(length)
            if is_error:
                number, _ = _ERROR.unpack_from(payload)
                raise OSError(number or errno.EIO, os.strerror(number or errno.EIO))
            if kind != _NONE:
                yield kind, payload
            elif not flags & _DONE or length:
                raise self._wrong("an empty chunk that is not the last one")

    def _negotiate(self) -> None:
        magic, option_magic, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, option_magic) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE:
            raise MalformedError(f"There is no NBD server of QEMU at {self._address.uri}.")
        self._send(_NUMBER.pack(_FIXED_NEWSTYLE | (flags & _NO_ZEROES)))
        if self._address.is_tls:
            self._start_tls()
        self._option(_OPTION_STRUCTURED_REPLY)
        name = self._export.encode()
        if self._context is not None:
            self._set_context(name, self._context.encode())
        replies = self._option(_OPTION_GO, _NUMBER.pack(len(name)) + name + bytes(2))
        exports = [
            _INFO_EXPORT.unpack(data) for kind, data in replies if kind == _INFO and len(data) == _INFO_EXPORT.size
        ]
        sizes = [size for info, size, _ in exports if info == 0 and size <= _MAX_SIZE_BYTES]
        if len(sizes) != 1:
            raise self._wrong("no size")
        [self._size_bytes] = sizes

    def _start_tls(self) -> None:
        if self._tls is None:
            raise StorageError(f"{self._address.uri} needs TLS credentials; give the directory that has them.")
        self._option(_OPTION_STARTTLS)
        self._socket = self._tls.wrap_socket(self._socket, server_hostname=self._address.host or "localhost")

    def _set_context(self, export: bytes, context: bytes) -> None:
        query = _NUMBER.pack(1) + _NUMBER.pack(len(context)) + context
        replies = self._option(_OPTION_SET_META_CONTEXT, _NUMBER.pack(len(export)) + export + query)
        found = [data for kind, data in replies if kind == _META_CONTEXT]
        if not found:
            raise MalformedError(f"The NBD server has no metadata context {self._context} of {self._export}.")
        if len(found) != 1 or found[0][_NUMBER.size :] != context:
            raise self._wrong("another metadata context than was asked for")
        (self._context_id,) = _NUMBER.unpack_from(found[0])

    def _option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option, and return types and data of the replies before the last, which is an acknowledgement."""
        self._send(_OPTION.pack(_OPTION_MAGIC, option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while len(replies) < _MAX_OPTION_REPLIES:
            magic, replied, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != _OPTION_REPLY_MAGIC or replied != option or length > _MAX_OPTION_BYTES:
                break
            text = bytes(self._receive(length))
            if kind & _ERROR_BIT:
                why = text.decode(errors="replace") or f"error {kind & ~_ERROR_BIT}"
                raise MalformedError(f"The NBD server refuses to export {self._export}: {why}.")
            if kind == _ACK:
                return replies
            replies.append((kind, text))
        raise self._wrong(f"no reply to option {option}")

    def _wrong(self, what: str) -> MalformedError:
        return MalformedError(f"The NBD server of {self._export} sent {what}.")

    def _begin(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s

    def _send(self, data: bytes) -> None:
        self._limit()
        self._socket.sendall(data)

    def _receive(self, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        done = 0
        while done < length:
            self._limit()
            received = self._socket.recv_into(buffer[done:])
            if not received:
                # QEMU does at an error in the middle of a sparse read (nbd_co_send_sparse_read in nbd/server.c).
                raise OSError(errno.EIO, "QEMU closed the connection, as it does at an error of the storage")
            done += received
        return buffer

    def _limit(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise OSError(errno.ETIMEDOUT, f"there was no whole answer within {self._timeout_s:.0f} s")
        self._socket.settimeout(left_s)


def _words(err: OSError) -> str:
    return str(err.strerror or err).rstrip(".")
