"""Read an NBD export of vbackup's own storage daemon: what the guest would read, whatever the image is like.

Only what reading needs: the newstyle handshake and structured replies, in which the server describes zeros instead of
sending them. Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from vbackup.errors import MalformedError, StorageError

#: How much is asked for at a time; QEMU takes up to 32 MiB.
MAX_READ_BYTES = 4 * 1024 * 1024
#: How long to wait for an answer, so that hanging storage does not hang vbackup for ever.
TIMEOUT_S = 600.0
_GREETING = struct.Struct(">8s8sH")
_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION = struct.Struct(">8sII")
_OPTION_GO, _OPTION_STRUCTURED_REPLY = 7, 8
_OPTION_REPLY, _OPTION_REPLY_MAGIC = struct.Struct(">QIII"), 0x3E889045565A9
_ACK, _INFO, _ERROR_BIT = 1, 3, 1 << 31
_REQUEST, _REQUEST_MAGIC, _READ, _DISCONNECT = struct.Struct(">IHHQQI"), 0x25609513, 0, 2
_CHUNK, _CHUNK_MAGIC = struct.Struct(">IHHQI"), 0x668E33EF
_DONE, _NONE, _DATA, _HOLE, _CHUNK_ERROR_BIT = 1, 0, 1, 2, 1 << 15
_OFFSET, _HOLE_RANGE, _ERROR = struct.Struct(">Q"), struct.Struct(">QI"), struct.Struct(">I")


class NbdClient:
    """A connection to one export. A context manager. Entering raises MalformedError if QEMU does not answer."""

    def __init__(self, path: Path, export: str) -> None:
        self._path, self._export = path, export
        self._handle = 0

    def __enter__(self) -> NbdClient:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(TIMEOUT_S)
            self._socket.connect(os.fspath(self._path))
            self._negotiate()
        except OSError as err:
            self._socket.close()
            raise StorageError(f"The storage daemon does not export {self._export}: {err.strerror or err}.") from err
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._socket:
            try:
                self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
            except OSError:
                return  # it has ended

    def read(self, start_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """Yield the content of a range in ascending order: offset, length and content of each piece, None for zeros.

        ``length_bytes`` is at most MAX_READ_BYTES. The pieces are those of QEMU, of any length. Raises StorageError if
        QEMU cannot read it.
        """
        self._handle += 1
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _READ, self._handle, start_bytes, length_bytes))
            pieces = sorted(self._chunks(start_bytes), key=lambda piece: piece[0])
        except OSError as err:
            raise StorageError(f"{self._export} cannot be read at byte {start_bytes}: {err.strerror or err}.") from err
        covered = start_bytes
        for offset, length, data in pieces:
            if offset != covered:
                break
            covered += length
            yield offset, length, data
        if covered != start_bytes + length_bytes:
            raise MalformedError(f"The storage daemon sent something else than was asked for of {self._export}.")

    def _chunks(self, start_bytes: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """Yield offset, length and data of each chunk of a reply."""
        flags = 0
        while not flags & _DONE:
            magic, flags, kind, handle, length = _CHUNK.unpack(self._receive(_CHUNK.size))
            if magic != _CHUNK_MAGIC or handle != self._handle or length > MAX_READ_BYTES + _OFFSET.size:
                raise MalformedError(f"The storage daemon answers wrongly to a read of {self._export}.")
            payload = self._receive(length)
            if kind & _CHUNK_ERROR_BIT:
                (number,) = _ERROR.unpack_from(payload)
                raise OSError(number, os.strerror(number))
            if kind == _DATA:
                (offset,) = _OFFSET.unpack_from(payload)
                yield offset, length - _OFFSET.size, payload[_OFFSET.size :]
            elif kind == _HOLE:
                offset, hole_bytes = _HOLE_RANGE.unpack(payload)
                yield offset, hole_bytes, None
            elif kind != _NONE:
                raise MalformedError(f"The storage daemon sent a chunk of type {kind} at byte {start_bytes}.")

    def _negotiate(self) -> None:
        magic, option_magic, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, option_magic) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE:
            raise MalformedError(f"There is no NBD server of QEMU at {self._path}.")
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        self._option(_OPTION_STRUCTURED_REPLY, b"")
        name = self._export.encode()
        self._option(_OPTION_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))

    def _option(self, option: int, data: bytes) -> None:
        self._socket.sendall(_OPTION.pack(_OPTION_MAGIC, option, len(data)) + data)
        while True:
            magic, replied, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            text = self._receive(length)
            if magic != _OPTION_REPLY_MAGIC or replied != option or kind & _ERROR_BIT:
                raise MalformedError(
                    f"The storage daemon refuses to export {self._export}: {bytes(text).decode(errors='replace')}."
                )
            if kind == _ACK:
                return
            if kind != _INFO:
                raise MalformedError(f"The storage daemon answers with {kind} to an option of NBD.")

    def _receive(self, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        done = 0
        while done < length:
            received = self._socket.recv_into(buffer[done:])
            if not received:
                # QEMU does at an error in the middle of a sparse read (nbd_co_send_sparse_read in nbd/server.c).
                raise OSError(errno.EIO, "QEMU closed the connection, as it does at an error of the storage")
            done += received
        return buffer
