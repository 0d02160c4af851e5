"""Write metrics where node-exporter finds them, or answer Prometheus: ``vbackup metrics``.

vbackup.overview.metrics says what they are.
"""

from __future__ import annotations

import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vbackup.errors import UsageError, VbackupError
from vbackup.files import replace_bytes, storage_errors
from vbackup.overview import metrics
from vbackup.overview.state import Overview
from vbackup.stop import Stop

#: For the exporter, which runs as another user.
_MODE = 0o644
#: What was found out serves so many seconds: two Prometheus that ask at once cost no more than one.
FRESH_S = 5.0
#: How long a client may take to ask.
_TIMEOUT_S = 10.0
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def write(path: Path, overview: Overview) -> None:
    """Write the metrics; a reader sees the file before or this one. Raises MissingPackageError, StorageError.

    Everybody may read it, as node-exporter has to: it has the names of domains, and nothing of their content.
    """
    data = metrics.exposition(overview)
    with storage_errors(f"write {path}"):
        replace_bytes(path, data, mode=_MODE)


@dataclass(frozen=True)
class MetricsServer:
    """Where metrics are served."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Of the metrics."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"


def serve(
    host: str,
    port: int,
    gather: Callable[[], Overview],
    on_ready: Callable[[MetricsServer], None],
    *,
    stop: Stop,
) -> None:
    """Answer GET /metrics until ``stop`` is requested. ``port``: 0 is any that is free.

    ``gather`` is called when somebody asks, by one thread at a time. Raises UsageError for an address that others can
    reach, or that cannot be listened on; MissingPackageError.
    """
    metrics.require()
    address = _loopback(host)
    try:
        server = _Server((address, port), _Answers(gather))
    except OSError as err:
        raise UsageError(f"Cannot listen on {MetricsServer(address, port).url}: {err.strerror or err}.") from err
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        with stop.descriptor() as stopping:
            on_ready(MetricsServer(address, server.server_address[1]))
            poll = select.poll()
            poll.register(stopping, select.POLLIN)
            poll.poll()
    finally:
        server.shutdown()
        server.server_close()


def _loopback(host: str) -> str:
    """Return the address of a host. Raises UsageError if others can reach it."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        is_loopback = ip_address(address).is_loopback
    except ValueError as err:
        raise UsageError(f"{host!r} is not an IP address to listen on; give 127.0.0.1 or [::1].") from err
    if not is_loopback:
        raise UsageError(
            f"Metrics are served on loopback only, as nobody is asked who they are; others can reach {host}. Give"
            " 127.0.0.1 or [::1], and let a proxy with TLS and a password, or the text file of node-exporter, bring"
            " them elsewhere."
        )
    return address


class _Answers:
    """The newest metrics, found out when they are older than FRESH_S."""

    def __init__(self, gather: Callable[[], Overview]) -> None:
        self._gather, self._lock = gather, threading.Lock()
        self._text, self._fresh_until_s = b"", 0.0

    def text(self) -> bytes:
        """Return the text. Raises VbackupError."""
        with self._lock:
            if time.monotonic() >= self._fresh_until_s:
                self._text = metrics.exposition(self._gather())
                self._fresh_until_s = time.monotonic() + FRESH_S
            return self._text


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, where: tuple[str, int], answers: _Answers) -> None:
        self.answers = answers
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        super().__init__(where, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is its own matter."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT_S
    server_version, sys_version = "vbackup", ""
    server: _Server

    def do_GET(self) -> None:
        """Answer."""
        if self.path.partition("?")[0] != "/metrics":
            self._send(HTTPStatus.NOT_FOUND, b"The metrics are at /metrics.\n")
            return
        try:
            text = self.server.answers.text()
        except VbackupError as err:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{err}\n".encode())
            return
        self._send(HTTPStatus.OK, text)

    def _send(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class has
        """Say nothing of every question."""
