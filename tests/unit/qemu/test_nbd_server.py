"""The NBD server against a client that says what a test wants; tests/end_to_end/test_copy.py has QEMU's."""

from __future__ import annotations

import errno
import logging
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.qemu import nbd_server
from vbackup.qemu.nbd_server import MAX_READ_BYTES, THREADS, NbdServer

ABORT, LIST, INFO, GO = 2, 3, 6, 7
ACK, IS_INFO, UNSUPPORTED, UNKNOWN = 1, 3, (1 << 31) + 1, (1 << 31) + 6
READ, WRITE, DISCONNECT = 0, 1, 2
EIO, EINVAL = 5, 22


class Numbers:
    """An export whose bytes say where they are; some cannot be read, and some only when the test says so."""

    size_bytes = 100_000

    def __init__(self) -> None:
        self.let = threading.Event()

    def read(self, offset: int, length: int) -> bytes:
        if offset == 13:
            raise OSError(EIO, "unlucky")
        if offset == 14:
            raise KeyError("unforeseen")
        if offset == 15:
            return b"x" * (length - 1)
        if offset == 16:
            raise SystemExit(1)
        if offset == 77:
            assert self.let.wait(10)
        return bytes((offset + n) % 251 for n in range(length))


@pytest.fixture
def export() -> Numbers:
    return Numbers()


@pytest.fixture
def server(tmp_path: Path, export: Numbers) -> Iterator[NbdServer]:
    with NbdServer(tmp_path / "nbd", {"vda": export}) as started:
        yield started


class Client:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        assert self.receive(18) == struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)
        self.send(struct.pack(">I", 3))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, length: int) -> bytes:
        return self._socket.recv(length, socket.MSG_WAITALL)

    def option(self, option: int, data: bytes = b"") -> tuple[int, bytes]:
        self.send(struct.pack(">8sII", b"IHAVEOPT", option, len(data)) + data)
        return self.reply(option)

    def reply(self, option: int) -> tuple[int, bytes]:
        magic, of, kind, length = struct.unpack(">QIII", self.receive(20))
        assert (magic, of) == (0x3E889045565A9, option)
        return kind, self.receive(length)

    def go(self, name: str = "vda") -> list[tuple[int, bytes]]:
        data = struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0)
        replies = [self.option(GO, data)]
        while replies[-1][0] == IS_INFO:
            replies.append(self.reply(GO))
        return replies

    def ask(self, kind: int, handle: int, offset: int, length: int) -> None:
        self.send(struct.pack(">IHHQQI", 0x25609513, 0, kind, handle, offset, length))

    def answer(self, length: int = 0) -> tuple[int, int, bytes]:
        magic, error, handle = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698
        return error, handle, b"" if error else self.receive(length)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def client(server: NbdServer, tmp_path: Path) -> Iterator[Client]:
    connected = Client(tmp_path / "nbd")
    yield connected
    connected.close()


def test_export_is_described_and_read(client: Client, export: Numbers) -> None:
    assert client.option(LIST) == (UNSUPPORTED, b"")
    assert client.go("vdb") == [(UNKNOWN, b"")]
    assert client.go() == [
        (IS_INFO, struct.pack(">HQH", 0, export.size_bytes, 0b1_0000_0011)),
        (IS_INFO, struct.pack(">HIII", 3, 1, 65536, MAX_READ_BYTES)),
        (ACK, b""),
    ]
    client.ask(READ, 5, 1000, 300)
    assert client.answer(300) == (0, 5, export.read(1000, 300))


def test_what_cannot_be_read_is_an_error_and_the_next_is_read(client: Client, export: Numbers) -> None:
    client.go()
    for handle, offset, length, error in ((1, 13, 1, EIO), (2, 99_999, 2, EINVAL), (3, 0, MAX_READ_BYTES + 1, EINVAL)):
        client.ask(READ, handle, offset, length)
        assert client.answer() == (error, handle, b"")
    client.ask(READ, 4, 99_999, 1)
    assert client.answer(1) == (0, 4, export.read(99_999, 1))


@pytest.mark.parametrize("offset", [14, 15])
def test_read_that_fails_as_nobody_foresaw_is_answered(
    client: Client, caplog: pytest.LogCaptureFixture, offset: int
) -> None:
    """Also more often than there are threads: none is lost by it."""
    client.go()
    with caplog.at_level(logging.ERROR):
        for handle in range(2 * THREADS):
            client.ask(READ, handle, offset, 3)
            assert client.answer() == (EIO, handle, b"")
    assert f"A read of 3 bytes at {offset}" in caplog.text
    client.ask(READ, 99, 0, 1)
    assert client.answer(1) == (0, 99, b"\0")


def test_end_of_a_thread_ends_all_connections(server: NbdServer, tmp_path: Path) -> None:
    clients = [Client(tmp_path / "nbd"), Client(tmp_path / "nbd")]
    for each in clients:
        each.go()
    clients[0].ask(READ, 1, 16, 1)
    for each in clients:
        assert each.receive(1) == b""
        each.close()


def test_nothing_can_be_written(client: Client) -> None:
    client.go()
    client.ask(WRITE, 1, 0, 4)
    assert client.answer() == (EINVAL, 1, b"")
    assert client.receive(1) == b""


def test_slow_read_holds_up_no_other(client: Client, export: Numbers) -> None:
    client.go()
    client.ask(READ, 1, 77, 1)
    client.ask(READ, 2, 0, 1)
    assert client.answer(1) == (0, 2, b"\0")
    export.let.set()
    assert client.answer(1) == (0, 1, b"\x4d")


@pytest.mark.parametrize("words", [b"IHAVEOPX" + bytes(8), b"IHAVEOPT" + struct.pack(">II", GO, 1 << 20), b"x" * 4])
def test_client_that_speaks_otherwise_is_let_go(server: NbdServer, tmp_path: Path, words: bytes) -> None:
    client = Client(tmp_path / "nbd")
    client.send(words)
    if len(words) < 16:
        client._socket.shutdown(socket.SHUT_WR)
    assert client.receive(1) == b""
    client.close()


def test_abort_and_disconnect_end_the_connection(server: NbdServer, tmp_path: Path) -> None:
    client = Client(tmp_path / "nbd")
    assert client.option(ABORT) == (ACK, b"")
    assert client.receive(1) == b""
    client.close()
    client = Client(tmp_path / "nbd")
    client.go()
    client.ask(DISCONNECT, 0, 0, 0)
    assert client.receive(1) == b""
    client.close()


def test_end_does_not_wait_for_a_read(tmp_path: Path, export: Numbers) -> None:
    with NbdServer(tmp_path / "nbd", {"vda": export}):
        assert (tmp_path / "nbd").stat().st_mode & 0o777 == 0o600
        client = Client(tmp_path / "nbd")
        client.go()
        client.ask(READ, 1, 77, 1)
    assert client.receive(1) == b""
    assert not (tmp_path / "nbd").exists()
    export.let.set()
    client.close()


class Refusing(socket.socket):
    """A listening socket that accepts only from the third time on."""

    calls = 0

    def accept(self) -> tuple[socket.socket, object]:
        Refusing.calls += 1
        if Refusing.calls < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_want_of_descriptors_only_delays_a_connection(
    tmp_path: Path, export: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "calls", 0)
    with monkeypatch.context() as made:
        made.setattr(nbd_server.socket, "socket", Refusing)
        server = NbdServer(tmp_path / "nbd", {"vda": export}).__enter__()
    try:
        client = Client(tmp_path / "nbd")
        client.go()
        client.ask(READ, 1, 0, 1)
        assert client.answer(1) == (0, 1, b"\0")
        assert Refusing.calls >= 3
        client.close()
    finally:
        server.__exit__(None, None, None)


def test_socket_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="listen on"), NbdServer(tmp_path / "missing" / "nbd", {}):
        pass
