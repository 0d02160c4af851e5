"""An HTTP server on loopback that does what a test wants, and keeps what it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    path: str  #: with its query
    headers: Mapping[str, str]  #: names in lower case
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the server does with a request."""

    status: int = 200
    text: str = "OK"
    headers: Mapping[str, str] = field(default_factory=dict)
    is_dropped: bool = False  #: it closes the connection instead
    drip_s: float = 0.0  #: it sends a byte of its headers, and waits so long before each next one


@dataclass
class Web:
    """The server."""

    url: str
    answer: Callable[[Asked], Answer] = lambda _asked: Answer()
    asked: list[Asked] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def answers(self, *answers: Answer) -> None:
        """Give these answers, one after the other, and then the last one for ever."""
        left = list(answers)
        self.answer = lambda _asked: left.pop(0) if len(left) > 1 else left[0]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        web = self.server.web
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body)
        web.asked.append(asked)
        answer = web.answer(asked)
        if answer.is_dropped:
            self.close_connection = True
        elif answer.drip_s:
            self._drip(answer.drip_s, web.is_over)
        else:
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        text = answer.text.encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _drip(self, pause_s: float, is_over: threading.Event) -> None:
        for byte in b"HTTP/1.0 200 OK\r\nX-Slow: " + b"x" * 1000:
            try:
                self.wfile.write(bytes((byte,)))
                self.wfile.flush()
            except OSError:
                return
            if is_over.wait(pause_s):
                return

    def log_message(self, *_args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, web: Web) -> None:
        super().__init__((host, 0), _Handler)
        self.web = web

    def handle_error(self, *_args: Any) -> None:
        """A client that does not like the certificate."""


@contextmanager
def web(*, certificates: Path | None = None, host: str = "127.0.0.1") -> Iterator[Web]:
    """Yield a server, with TLS if there are certificates (tests.certificates) for it."""
    made = Web("")
    server = _Server(host, made)
    scheme = "http"
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
        # The handshake belongs to the thread of the connection: one that fails must not end the server.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    made.url = f"{scheme}://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
