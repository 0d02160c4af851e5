"""An NBD server on a unix socket that answers right, or lies as a test wants it to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from vbackup.qemu.nbd_address import NbdAddress

GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)
ACK, INFO, META_CONTEXT, UNKNOWN = 1, 3, 4, (1 << 31) + 6
STARTTLS, GO, STRUCTURED_REPLY, SET_META_CONTEXT = 5, 7, 8, 10
NONE, DATA, HOLE, STATUS, ERROR = 0, 1, 2, 5, 32769
READ, DISCONNECT, BLOCK_STATUS = 0, 2, 7
CONTEXT_ID = 7


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def chunk(handle: int, kind: int, payload: bytes = b"", *, is_done: bool = True) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, int(is_done), kind, handle, len(payload)) + payload


def data(handle: int, offset: int, content: bytes, *, is_done: bool = True) -> bytes:
    return chunk(handle, DATA, struct.pack(">Q", offset) + content, is_done=is_done)


def hole(handle: int, offset: int, length: int, *, is_done: bool = True) -> bytes:
    return chunk(handle, HOLE, struct.pack(">QI", offset, length), is_done=is_done)


def status(handle: int, *extents: tuple[int, int], context_id: int = CONTEXT_ID, is_done: bool = True) -> bytes:
    payload = struct.pack(">I", context_id) + b"".join(struct.pack(">II", *extent) for extent in extents)
    return chunk(handle, STATUS, payload, is_done=is_done)


Reply = Union[bytes, Iterator[bytes], None]  #: what is sent, also bit by bit


@dataclass
class FakeNbd:
    """Serves one export, ``content``, whose blocks ``contexts`` describe. A context manager.

    ``read`` and ``blocks`` return what is sent for a request (handle, offset, length) in place of the right answer,
    ``option`` what is sent for an option with its data; None is the right answer, b"" none at all.
    """

    path: Path
    content: bytes
    contexts: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)  #: lengths and flags
    greeting: bytes = GREETING
    read: Callable[[int, int, int], Reply] = lambda *_: None
    blocks: Callable[[int, int, int], Reply] = lambda *_: None
    option: Callable[[int, bytes], bytes | None] = lambda *_: None
    max_extents: int = 1000  #: of one answer
    asked: list[tuple[str, int, int]] = field(default_factory=list)  #: context ("" for a read), offset and length
    connections: int = 0  #: that are open

    @property
    def address(self) -> NbdAddress:
        return NbdAddress("vda", path=self.path)

    def __enter__(self) -> FakeNbd:
        self._open: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def drop(self) -> None:
        """Close all connections."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self.connections += 1
        try:
            with connection, connection.makefile("rb") as stream:
                connection.sendall(self.greeting)
                stream.read(4)
                self._transmit(connection, stream.read, self._negotiate(connection, stream.read))
        except (OSError, struct.error, ValueError):
            pass  # the client has gone
        finally:
            self.connections -= 1

    def _negotiate(self, connection: socket.socket, receive: Callable[[int], bytes]) -> str:
        context = ""
        while True:
            _, option, length = struct.unpack(">8sII", receive(16))
            words = receive(length)
            reply = self.option(option, words)
            if option == SET_META_CONTEXT:
                name = words[4 + struct.unpack_from(">I", words)[0] + 8 :]
                context = name.decode()
                found = option_reply(option, META_CONTEXT, struct.pack(">I", CONTEXT_ID) + name)
                right = (found if context in self.contexts else b"") + option_reply(option, ACK)
            elif option == GO:
                info = struct.pack(">HQH", 0, len(self.content), 1)
                right = option_reply(option, INFO, info) + option_reply(option, ACK)
            else:
                right = option_reply(option, ACK if option == STRUCTURED_REPLY else UNKNOWN)
            connection.sendall(right if reply is None else reply)
            if option == GO and reply is None:
                return context

    def _transmit(self, connection: socket.socket, receive: Callable[[int], bytes], context: str) -> None:
        while True:
            _, _, kind, handle, offset, length = struct.unpack(">IHHQQI", receive(28))
            if kind == DISCONNECT:
                return
            self.asked.append((context if kind == BLOCK_STATUS else "", offset, length))
            if kind == READ:
                reply = self.read(handle, offset, length)
                right = data(handle, offset, self.content[offset : offset + length])
            else:
                reply = self.blocks(handle, offset, length)
                right = status(handle, *self._extents(context, offset, length))
            for part in (right,) if reply is None else (reply,) if isinstance(reply, bytes) else reply:
                connection.sendall(part)

    def _extents(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """As QEMU's: the first is from the offset on, the last is cut at the end of the request."""
        found, at = [], 0
        for extent_bytes, flags in self.contexts[context]:
            start, end = max(at, offset), min(at + extent_bytes, offset + length)
            if start < end:
                found.append((end - start, flags))
            at += extent_bytes
        return found[: self.max_extents]
