"""The HTTPS server, with a session that is not real and a fake of QEMU's NBD server. Clients drop, stall and lie."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import certificates, documents, fake_nbd
from tests.fake_nbd import FakeNbd
from vbackup.errors import ChainError, StorageError, UsageError
from vbackup.http import access, server
from vbackup.http.served import MapQuery, Reader, ServedDisk, Watch
from vbackup.http.server import Limits
from vbackup.qemu.nbd_client import NbdClient
from vbackup.stop import Stop

MIB = 1024 * 1024
SIZE = 5 * MIB + 512
CONTENT = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]
TOKEN = "0123456789abcdef-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE_S = 10.0


@dataclass
class Disk:
    nbd: FakeNbd
    queries: list[MapQuery] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.nbd.content)

    def reader(self) -> AbstractContextManager[Reader]:
        return NbdClient(self.nbd.address)

    def extents(self, query: MapQuery) -> dict[str, Any]:
        self.queries.append(query)
        if query.checkpoint == "unknown":
            raise ChainError("There is no such checkpoint.")
        if query.kind == "odd":
            raise UsageError("There is no such kind.")
        if query.kind == "broken":
            raise StorageError("It cannot be read.")
        return {"extents": [{"start": 0, "length": 512, "dirty": True, "zero": False}], "next_offset": None}


@dataclass
class State:
    left_s: float
    reason: str


@dataclass
class Session:
    disk: Disk
    now: State = field(default_factory=lambda: State(60.0, "It is open."))

    @property
    def disks(self) -> Mapping[str, ServedDisk]:
        return {"vda": self.disk}

    def watch(self) -> AbstractContextManager[Watch]:
        return NbdClient(self.disk.nbd.address)

    def state(self) -> State:
        return self.now


@dataclass
class Running:
    port: int
    nbd: FakeNbd
    session: Session
    stop: Stop
    thread: threading.Thread
    pki: Path

    def tls(self, *, has_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki / "ca-cert.pem"))
        if has_certificate:
            context.load_cert_chain(self.pki / "client-cert.pem", self.pki / "client-key.pem")
        return context

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.port, context=self.tls(), timeout=PATIENCE_S)

    def ask(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] = BEARER
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self.connection()
        try:
            connection.request(method, path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def raw(self) -> ssl.SSLSocket:
        """A connection with a TLS session on which nothing is sent yet."""
        return self.tls().wrap_socket(
            socket.create_connection(("localhost", self.port), PATIENCE_S), server_hostname="localhost"
        )


def until(is_so: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline
        pause.wait(0.01)


@contextmanager
def running(
    tmp_path: Path, *, limits: Limits | None = None, verify_peer: bool = False, **lies: Any
) -> Iterator[Running]:
    pki = certificates.make(tmp_path / "pki")
    with ExitStack() as stack:
        nbd = stack.enter_context(FakeNbd(tmp_path / "nbd", CONTENT, **lies))
        session, stop, ready = Session(Disk(nbd)), Stop(), threading.Event()
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(
            target=server.serve,
            args=(session, listening),
            kwargs={
                "tls": access.server_context(pki, verify_peer=verify_peer),
                "token": access.Token(TOKEN.encode()),
                "limits": limits or Limits(),
                "stop": stop,
                "on_ready": ready.set,
            },
        )
        port = listening.getsockname()[1]
        thread.start()
        try:
            assert ready.wait(PATIENCE_S)
            yield Running(port, nbd, session, stop, thread, pki)
        finally:
            stop.request(15)
            thread.join(PATIENCE_S)
        assert not thread.is_alive()
        until(lambda: nbd.connections == 0)


@pytest.mark.parametrize(
    ("path", "headers", "start", "length"),
    [
        ("/vda/data", {"Range": "bytes=0-511"}, 0, 512),
        ("/vda/data", {"Range": "bytes=1000-3000000"}, 1000, 2999001),
        ("/vda/data", {"Range": f"bytes={SIZE - 1}-"}, SIZE - 1, 1),
        ("/vda/data?offset=1048575&length=2", {}, MIB - 1, 2),
    ],
)
def test_range_of_the_data(tmp_path: Path, path: str, headers: dict[str, str], start: int, length: int) -> None:
    with running(tmp_path) as one:
        status, answered, body = one.ask(path, headers={**BEARER, **headers})
        assert (status, body == CONTENT[start : start + length]) == (206, True)
        assert answered["Content-Range"] == f"bytes {start}-{start + length - 1}/{SIZE}"


def test_whole_disk_and_its_head(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        status, answered, body = one.ask("/vda/data")
        assert (status, body == CONTENT) == (200, True)
        assert "Content-Range" not in answered
        assert answered["Server"] == "vbackup"
        status, answered, body = one.ask("/vda/data", method="HEAD")
        assert (status, body, answered["Content-Length"], answered["Accept-Ranges"]) == (200, b"", str(SIZE), "bytes")


def test_zeros_that_qemu_does_not_send_are_sent(tmp_path: Path) -> None:
    def read(handle: int, start: int, length: int) -> bytes:
        half = length // 2
        if start == 0:
            return fake_nbd.hole(handle, start, length)
        part = fake_nbd.data(handle, start, CONTENT[start : start + half], is_done=False)
        return part + fake_nbd.hole(handle, start + half, length - half)

    with running(tmp_path, read=read) as one:
        body = one.ask("/vda/data?length=2097152")[2]
        assert body[:MIB] == bytes(MIB)
        assert body[MIB:] == CONTENT[MIB : MIB + MIB // 2] + bytes(MIB // 2)


def test_several_requests_on_one_connection(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        connection = one.connection()
        for start in range(0, 2048, 512):
            connection.request("GET", f"/vda/data?offset={start}&length=512", headers=BEARER)
            assert connection.getresponse().read() == CONTENT[start : start + 512]
        connection.close()


def test_map_has_what_the_session_says(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        status, _, body = one.ask("/vda/map?offset=5&length=6&page_size=7&kind=allocated")
        assert (status, json.loads(body)["next_offset"]) == (200, None)
        assert one.session.disk.queries == [MapQuery(5, 6, 7, "allocated", None)]


def test_options_say_what_can_be_done(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(max_readers=3)) as one:
        status, answered, body = one.ask("/", method="OPTIONS")
        assert (status, answered["Allow"], answered["Server"]) == (200, "GET, HEAD, OPTIONS", "vbackup")
        assert json.loads(body) == {
            "features": ["map", "data"],
            "max_readers": 3,
            "max_writers": 0,
            "unix_socket": None,
        }


@pytest.mark.parametrize(
    ("path", "method", "headers", "status", "code"),
    [
        ("/vda/data?offset=0&length=5243393", "GET", {}, 416, "BEYOND_END"),
        ("/vda/data", "GET", {"Range": "bytes=5243392-"}, 416, "BEYOND_END"),
        ("/vda/data", "GET", {"Range": "bytes=0-1,4-5"}, 400, "BAD_REQUEST"),
        ("/vda/data?offset=x", "GET", {}, 400, "BAD_REQUEST"),
        ("/vda/map?page_size=0", "GET", {}, 400, "BAD_REQUEST"),
        ("/vda/map?offset=5243393", "GET", {}, 416, "BEYOND_END"),
        ("/vda/map?offset=1&length=5243392", "GET", {}, 416, "BEYOND_END"),
        ("/vda/map?kind=odd", "GET", {}, 400, "BAD_REQUEST"),
        ("/vda/map?checkpoint=unknown", "GET", {}, 404, "CHECKPOINT_UNKNOWN"),
        ("/vda/map?kind=broken", "GET", {}, 500, "READ_FAILED"),
        ("/vdb/data", "GET", {}, 404, "NOT_FOUND"),
        ("/vda", "GET", {}, 404, "NOT_FOUND"),
        ("/vda/data/x", "GET", {}, 404, "NOT_FOUND"),
        ("/../etc/passwd", "GET", {}, 404, "NOT_FOUND"),
        ("/vda/data", "PUT", {}, 405, "METHOD_NOT_ALLOWED"),
        ("/vda/map", "DELETE", {}, 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_request_that_is_refused_says_why(
    tmp_path: Path, path: str, method: str, headers: dict[str, str], status: int, code: str
) -> None:
    with running(tmp_path) as one:
        answered, more, body = one.ask(path, method=method, headers={**BEARER, **headers})
        refusal = json.loads(body)
        documents.check(refusal)
        assert (answered, refusal["error"]["code"]) == (status, code)
        assert status != 416 or more["Content-Range"] == f"bytes */{SIZE}"
        assert one.nbd.asked == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
@pytest.mark.parametrize("path", ["/vda/data", "/vda/map", "/vdx/data", "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_without_the_token_nothing_is_said(tmp_path: Path, headers: dict[str, str], path: str, method: str) -> None:
    with running(tmp_path) as one:
        status, answered, body = one.ask(path, method=method, headers=headers)
        assert (status, answered["WWW-Authenticate"], answered["Connection"]) == (401, "Bearer", "close")
        assert b"vda" not in body
        assert (one.nbd.asked, one.session.disk.queries) == ([], [])
        assert one.nbd.connections == 1  # the server's own, which watches


def test_without_tls_there_is_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as one, socket.create_connection(("localhost", one.port), PATIENCE_S) as plain:
        plain.sendall(f"GET /vda/data HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        received = plain.recv(4096)
        assert b"HTTP" not in received
        assert one.nbd.asked == []


def test_client_certificate_can_be_required(tmp_path: Path) -> None:
    with running(tmp_path, verify_peer=True) as one:
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            one.ask("/vda/data")
        assert one.nbd.asked == []
        connection = http.client.HTTPSConnection("localhost", one.port, context=one.tls(has_certificate=True))
        connection.request("GET", "/vda/data?length=512", headers=BEARER)
        assert connection.getresponse().read() == CONTENT[:512]
        connection.close()


def test_readers_have_a_limit(tmp_path: Path) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read(handle: int, start: int, length: int) -> None:
        reading.set()
        assert go_on.wait(PATIENCE_S)

    with running(tmp_path, limits=Limits(max_readers=1), read=read) as one:
        first = one.connection()
        first.request("GET", "/vda/data", headers=BEARER)
        assert reading.wait(PATIENCE_S)
        status, answered, body = one.ask("/vda/data?length=512")
        assert (status, answered["Retry-After"]) == (503, "1")
        assert json.loads(body)["error"]["code"] == "TOO_MANY_READERS"
        assert one.ask("/vda/map")[0] == 200
        go_on.set()
        assert first.getresponse().read() == CONTENT
        first.close()
        until(lambda: one.nbd.connections == 1)
        assert one.ask("/vda/data?length=512")[0] == 206


def test_client_that_drops_frees_its_connection_to_qemu(tmp_path: Path) -> None:
    with running(tmp_path, read=endless) as one:
        for _ in range(3):
            with one.raw() as client:
                client.sendall(request("/vda/data"))
                assert client.recv(1000)
                until(lambda: one.nbd.connections == 2)
            until(lambda: one.nbd.connections == 1)


def test_client_that_drops_while_qemu_hangs_frees_its_connection(tmp_path: Path) -> None:
    with running(tmp_path, read=lambda *_: b"") as one:
        with one.raw() as client:
            client.sendall(request("/vda/data"))
            until(lambda: one.nbd.connections == 2)
        until(lambda: one.nbd.connections == 1)


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()


def endless(handle: int, start: int, length: int) -> None:
    """All reads are answered, as the fake does by itself."""


def test_client_that_stalls_is_dropped_and_little_is_read_ahead(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(stall_s=0.5)) as one:
        one.nbd.content = bytes(32 * MIB)
        with one.raw() as client:
            client.sendall(request("/vda/data"))
            until(lambda: one.nbd.connections == 2)
            until(lambda: one.nbd.connections == 1)  # without a byte being taken
            asked = sum(length for context, _, length in one.nbd.asked if not context)
            assert asked <= 16 * MIB  # two pieces, and what Linux takes for both sockets
            received = 0
            with suppress(ConnectionError, ssl.SSLError):
                while data := client.recv(65536):
                    received += len(data)
            assert received < 32 * MIB


def test_client_that_says_nothing_is_dropped(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(begin_s=0.3)) as one, one.raw() as client:
        client.sendall(b"GET /vda/da")
        began = time.monotonic()
        with suppress(ConnectionError, ssl.SSLError):  # reset
            assert client.recv(100) == b""
        assert time.monotonic() - began < PATIENCE_S


def test_connections_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_IDLE", -server.MAX_MAPS + 1)
    with running(tmp_path, limits=Limits(max_readers=1)) as one, ExitStack() as stack:
        kept = [stack.enter_context(one.raw()) for _ in range(2)]
        for client in kept:
            client.sendall(request("/vda/map"))
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        with pytest.raises((ConnectionError, ssl.SSLError, http.client.RemoteDisconnected)):
            one.ask("/vda/map")


def test_error_in_the_middle_ends_the_connection_before_its_length(tmp_path: Path) -> None:
    def read(handle: int, start: int, length: int) -> bytes | None:
        return None if start < 3 * MIB else fake_nbd.chunk(handle, fake_nbd.ERROR, b"\0\0\0\5\0\0")

    with running(tmp_path, read=read) as one:
        connection = one.connection()
        connection.request("GET", "/vda/data", headers=BEARER)
        answer = connection.getresponse()
        with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
            answer.read()
        connection.close()
        until(lambda: one.nbd.connections == 1)
        status, _, body = one.ask("/vda/data?offset=3145728&length=512")
        assert (status, json.loads(body)["error"]["code"]) == (500, "READ_FAILED")


@pytest.mark.parametrize(
    "nonsense",
    [b"\0" * 5000, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n", b"\r\n" * 10000],
    ids=["zeros", "version", "long", "lines"],
)
def test_nonsense_is_answered_without_data_and_the_server_lives(tmp_path: Path, nonsense: bytes) -> None:
    with running(tmp_path, limits=Limits(begin_s=0.5)) as one:
        with one.raw() as client, suppress(ConnectionError, ssl.SSLError):
            client.sendall(nonsense)
            assert b"HTTP/1.1 200" not in client.recv(4096)
        assert one.ask("/vda/data?length=512")[2] == CONTENT[:512]


def test_session_that_ends_is_said_and_ends_the_server(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(linger_s=PATIENCE_S)) as one:
        one.session.now = State(0, "Session x is committed.")
        one.nbd.drop()
        until(lambda: one.ask("/vda/map")[0] == 410)
        status, _, body = one.ask("/vda/data")
        assert status == 410
        assert json.loads(body) == {
            "schema": "vbackup.httperror/1",
            "error": {"code": "SESSION_ENDED", "message": "Session x is committed.", "retry": "begin"},
        }
        assert one.ask("/vda/data", headers={})[0] == 401
    with running(tmp_path / "2") as one:
        one.session.now = State(0, "Session x is aborted.")
        one.nbd.drop()
        one.thread.join(PATIENCE_S)
        assert not one.thread.is_alive()


def test_session_that_expires_ends_the_server_unless_it_was_renewed(tmp_path: Path) -> None:
    with running(tmp_path) as one:
        one.session.now = State(0.2, "It is open.")
        one.nbd.drop()  # the server looks, and finds that the connection has ended
        one.thread.join(PATIENCE_S)
        assert not one.thread.is_alive()


def test_data_that_is_being_sent_when_the_session_ends_is_cut(tmp_path: Path) -> None:
    reading = threading.Event()

    def read(handle: int, start: int, length: int) -> bytes | None:
        if start < 2 * MIB:
            return None
        reading.set()
        return b""

    with running(tmp_path, read=read) as one:
        connection = one.connection()
        connection.request("GET", "/vda/data", headers=BEARER)
        assert reading.wait(PATIENCE_S)
        one.session.now = State(0, "Session x is aborted.")
        one.nbd.drop()
        with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
            connection.getresponse().read()
        connection.close()
