"""A proxy before an S3 server that does what bad networks and busy servers do, to the requests that a test chooses."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Fault(Enum):
    """What happens to a request or to its answer."""

    ERROR_500 = "500"
    ERROR_503 = "503"
    DROPPED = "dropped"  #: the connection ends before the request has reached the server
    LOST = "lost"  #: the server did it, and the connection ends before the answer
    SLOW = "slow"  #: the answer comes in pieces, over a quarter of a second
    TRUNCATED = "truncated"  #: the connection ends in the middle of the answer
    CHANGED_REQUEST = "changed request"  #: one byte of the body that the server gets
    CHANGED_ANSWER = "changed answer"  #: one byte of the body that the client gets


@dataclass(frozen=True)
class Seen:
    """A request."""

    method: str
    path: str  #: with the query
    size_bytes: int


@dataclass
class FaultProxy:
    """A running proxy. ``choose`` says what happens to a request; it can count in ``seen``."""

    endpoint: str
    choose: Callable[[Seen], Fault | None] = lambda request: None
    seen: list[Seen] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def times(self, fault: Fault, times: int, *, method: str, of: str = "") -> None:
        """Let the first requests of a method whose path has ``of`` in it fail in this way."""
        left = times

        def choose(request: Seen) -> Fault | None:
            nonlocal left
            if not left or request.method != method or of not in request.path:
                return None
            left -= 1
            return fault

        self.choose = choose


@contextlib.contextmanager
def fault_proxy(server: str, *, certificates: Path | None = None) -> Iterator[FaultProxy]:
    """Yield a proxy of a server, given by its URL. ``certificates``: of tests.certificates, to speak TLS."""
    proxy = FaultProxy("")
    listening = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": proxy, "server_url": server}))
    if certificates is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
        listening.socket = tls.wrap_socket(listening.socket, server_side=True)
    proxy.endpoint = f"http{'' if certificates is None else 's'}://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    server_url: str

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with self.proxy.lock:
            request = Seen(self.command, self.path, len(body))
            self.proxy.seen.append(request)
            fault = self.proxy.choose(request)
        if fault in (Fault.ERROR_500, Fault.ERROR_503):
            self._answer(int(fault.value), {"content-type": "application/xml"}, b"<Error><Code>Fault</Code></Error>")
        elif fault is Fault.DROPPED:
            self.close_connection = True
        else:
            self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - the base class looks for them

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        if fault is Fault.CHANGED_REQUEST:
            body = _changed(body)
        connection = http.client.HTTPConnection(urlsplit(self.server_url).netloc, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if fault is Fault.LOST:
            self.close_connection = True
            return
        if fault is Fault.CHANGED_ANSWER:
            data = _changed(data)
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_A_HOP}
        self._answer(answer.status, headers, data, fault)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        # The length of what HEAD is about is not that of its answer.
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if fault is Fault.TRUNCATED:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault is Fault.SLOW:
            for start in range(0, len(data), -(-len(data) // 5)):
                self.wfile.write(data[start : start + -(-len(data) // 5)])
                self.wfile.flush()
                time.sleep(0.05)
        elif self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


_OF_A_HOP = ("connection", "transfer-encoding")


def _changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data
