"""Let QEMU read what only this process can: a read-only NBD server on a unix socket.

Only what QEMU's client needs: the fixed newstyle handshake and reads, several of them at a time, since what answers
them may be far away. Whoever may connect is let in, so the socket has to be in a directory that nobody else can enter.
Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.

Why no nbdkit: its Python plugin is for the Python that it was built with, and what it serves would need the keys of a
target in another process.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol

from vbackup.files import storage_errors

log = logging.getLogger(__name__)

#: Reads that are answered at a time. QEMU sends up to 16 (MAX_NBD_REQUESTS in block/nbd.c).
THREADS = 8
#: The longest read, which is also QEMU's (NBD_MAX_BUFFER_SIZE), and the longest option: a name has up to 4096 bytes.
MAX_READ_BYTES, _MAX_OPTION_BYTES = 32 * 1024 * 1024, 8 * 1024
_GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)  # fixed newstyle, without the zeros of an old one
_CLIENT_FLAGS = 4
_OPTION, _OPTION_MAGIC = struct.Struct(">8sII"), b"IHAVEOPT"
_ABORT, _INFO, _GO = 2, 6, 7
_REPLY, _REPLY_MAGIC = struct.Struct(">QIII"), 0x3E889045565A9
_ACK, _IS_INFO, _UNSUPPORTED, _INVALID, _UNKNOWN = 1, 3, 1 << 31 | 1, 1 << 31 | 3, 1 << 31 | 6
_OF_EXPORT, _OF_BLOCKS = struct.Struct(">HQH"), struct.Struct(">HIII")
#: Flags of an export: there are flags, it is read-only, and all connections see the same.
_FLAGS = 1 << 0 | 1 << 1 | 1 << 8
_PREFERRED_BYTES = 64 * 1024
_REQUEST, _REQUEST_MAGIC = struct.Struct(">IHHQQI"), 0x25609513
_READ, _DISCONNECT = 0, 2
_SIMPLE, _SIMPLE_MAGIC = struct.Struct(">IIQ"), 0x67446698
#: Pause after a connection that could not be accepted, for want of descriptors or memory.
_PAUSE_S = 0.05


class Export(Protocol):
    """What is served."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    def read(self, offset: int, length: int) -> bytes:
        """Return a part of it, from several threads. Raises OSError, which the client gets as EIO."""


class NbdServer:
    """Serves exports during its block; ``exports``, by name, may get more meanwhile. A context manager.

    Entering raises StorageError if the socket cannot be made, whose path has at most 107 bytes.
    """

    def __init__(self, path: Path, exports: Mapping[str, Export]) -> None:
        self._path, self._exports = path, exports
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_ended = threading.Event()
        self._reads: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def __enter__(self) -> NbdServer:
        with storage_errors(f"listen on {self._path}"):
            self._listening = socket.socket(socket.AF_UNIX)
            try:
                self._listening.bind(os.fspath(self._path))
                self._path.chmod(0o600)
                self._listening.listen()
            except BaseException:
                self._listening.close()
                raise
        # A read may wait for a network that is gone: no end of the process waits for it.
        for run in (self._accept, *[self._work] * THREADS):
            threading.Thread(target=run, daemon=True, name="nbd").start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._end()
        self._path.unlink(missing_ok=True)

    def _end(self) -> None:
        """End all connections, and accept no more."""
        with self._lock:
            self._is_ended.set()
            ended, self._open = self._open, set()
        for one in (self._listening, *ended):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for _ in range(THREADS):
            self._reads.put(None)

    def _accept(self) -> None:
        while not self._is_ended.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError as err:
                if not self._is_ended.wait(_PAUSE_S):
                    log.warning("No connection can be accepted: %s. It is tried again.", err.strerror or err)
                continue
            with self._lock:
                if self._is_ended.is_set():
                    connection.close()
                    return
                self._open.add(connection)
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True, name="nbd").start()
            except RuntimeError as err:  # no more threads
                log.warning("A connection is ended at once: %s.", err)
                self._let_go(connection)

    def _work(self) -> None:
        try:
            while (work := self._reads.get()) is not None:
                work()
        except BaseException:
            # QEMU would wait for ever for what nobody answers any more.
            log.exception("The server of %s ends.", self._path)
            self._end()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError, struct.error):
                connection.sendall(_GREETING)
                _receive(connection, _CLIENT_FLAGS)
                export = self._negotiate(connection)
                if export is not None:
                    self._transmit(connection, export)
        finally:
            self._let_go(connection)

    def _let_go(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _negotiate(self, connection: socket.socket) -> Export | None:
        """Return the export that the client wants; None if it wants nothing more."""
        while True:
            magic, option, length = _OPTION.unpack(_receive(connection, _OPTION.size))
            if magic != _OPTION_MAGIC or length > _MAX_OPTION_BYTES:
                return None
            data = _receive(connection, length)
            if option in (_INFO, _GO):
                export = self._exports.get(_name(data))
                if export is None:
                    connection.sendall(_answer(option, _UNKNOWN))
                    continue
                blocks = _OF_BLOCKS.pack(3, 1, _PREFERRED_BYTES, MAX_READ_BYTES)
                connection.sendall(_answer(option, _IS_INFO, _OF_EXPORT.pack(0, export.size_bytes, _FLAGS)))
                connection.sendall(_answer(option, _IS_INFO, blocks))
                connection.sendall(_answer(option, _ACK))
                if option == _GO:
                    return export
            elif option == _ABORT:
                connection.sendall(_answer(option, _ACK))
                return None
            else:
                connection.sendall(_answer(option, _UNSUPPORTED))

    def _transmit(self, connection: socket.socket, export: Export) -> None:
        sending = threading.Lock()
        while True:
            magic, _, kind, handle, offset, length = _REQUEST.unpack(_receive(connection, _REQUEST.size))
            if magic != _REQUEST_MAGIC or kind == _DISCONNECT:
                return
            if kind != _READ or length > MAX_READ_BYTES or offset + length > export.size_bytes:
                with sending:
                    connection.sendall(_SIMPLE.pack(_SIMPLE_MAGIC, errno.EINVAL, handle))
                if kind != _READ:  # what a write carries would be taken for the next request
                    return
                continue
            self._reads.put(_Read(connection, sending, export, handle, offset, length))


@dataclass(frozen=True)
class _Read:
    """A read that waits for a thread."""

    connection: socket.socket
    sending: threading.Lock
    export: Export
    handle: int
    offset: int
    length: int

    def __call__(self) -> None:
        try:
            data, code = self.export.read(self.offset, self.length), 0
        except OSError:
            data, code = b"", errno.EIO
        except Exception:
            # QEMU's client has no deadline: each request needs an answer.
            log.exception("A read of %d bytes at %d failed.", self.length, self.offset)
            data, code = b"", errno.EIO
        if code == 0 and len(data) != self.length:  # the client would take the next answer for the rest
            log.error("A read of %d bytes at %d returned %d.", self.length, self.offset, len(data))
            data, code = b"", errno.EIO
        with suppress(OSError), self.sending:  # whoever asked may have gone
            self.connection.sendall(_SIMPLE.pack(_SIMPLE_MAGIC, code, self.handle) + data)


def _receive(connection: socket.socket, length: int) -> bytes:
    """Return exactly so many bytes. Raises ConnectionError if they do not come."""
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        data += piece
    return bytes(data)


def _name(data: bytes) -> str:
    """Return the name of the export in NBD_OPT_GO, "" if it has none."""
    (length,) = struct.unpack_from(">I", data)
    return data[4 : 4 + length].decode(errors="replace")


def _answer(option: int, kind: int, data: bytes = b"") -> bytes:
    return _REPLY.pack(_REPLY_MAGIC, option, kind, len(data)) + data
