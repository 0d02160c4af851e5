"""Serve the disks of a pull session over HTTPS: ``vbackup serve-session``.

For data movers outside the host. What they get is what QEMU's NBD server gives; vbackup.http has the rest.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vbackup.errors import (
    BusyError,
    InterruptedBySignalError,
    MissingPackageError,
    SessionEndedError,
    UsageError,
    VbackupError,
)
from vbackup.http import access
from vbackup.http.served import MapQuery, Reader, ServedDisk, Watch
from vbackup.operations import session_changes
from vbackup.operations.session_changes import ChangesRequest, Kind
from vbackup.qemu import nbd_address
from vbackup.qemu.nbd_client import NbdClient
from vbackup.sessions.record import Session, SessionDisk, SessionState
from vbackup.sessions.store import Store
from vbackup.stop import Stop

#: A map is what ``vbackup session changes`` prints.
MAP_SCHEMA = "vbackup.changes/1"
#: How long a reader waits for QEMU: as long as a guest waits for its disk.
READ_TIMEOUT_S = 30.0
#: How long clients still hear that the session has ended.
LINGER_S = 2.0


@dataclass(frozen=True)
class ServeSessionRequest:
    """The options of ``vbackup serve-session``."""

    session: str
    host: str  #: name or address to listen on
    port: int  #: 0: any that is free
    tls_creds: Path  #: directory with server-cert.pem, server-key.pem and, for ``verify_peer``, ca-cert.pem
    token_file: Path
    verify_peer: bool = False  #: clients need a certificate of the CA
    max_readers: int = 8


@dataclass(frozen=True)
class Serving:
    """A session that is served."""

    session: Session
    url: str

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object, without the schema."""
        disks = [
            {
                "dev": disk.dev,
                "size_bytes": disk.size_bytes,
                "map": f"{self.url}/{disk.dev}/map",
                "data": f"{self.url}/{disk.dev}/data",
            }
            for disk in self.session.disks
        ]
        return {"session": self.session.id, "url": self.url, "disks": disks}


def run(
    request: ServeSessionRequest, *, store: Store, stop: Stop, on_ready: Callable[[Serving], None]
) -> SessionState | None:
    """Serve until a stop is requested, and return None, or until the session is committed: return its state.

    ``on_ready`` is called when clients can connect. Raises MissingPackageError, StorageError for a token or
    certificates that cannot be used, BusyError or UsageError if nobody can listen there, UnknownSessionError, and
    SessionEndedError if the session ends without a commit.
    """
    server = _server()
    token = access.read_token(request.token_file)
    tls = access.server_context(request.tls_creds, verify_peer=request.verify_peer)
    session = session_changes.open_session(store, request.session)
    served = _Session(session, store, request.tls_creds)
    with _listening(request.host, request.port) as listening, session_changes.of_session(store, session):
        serving = Serving(session, _url(request.host, listening.getsockname()[1]))
        server.serve(
            served,
            listening,
            tls=tls,
            token=token,
            limits=server.Limits(max_readers=request.max_readers, linger_s=LINGER_S),
            stop=stop,
            on_ready=lambda: on_ready(serving),
        )
    try:
        # Whoever ends the session holds the lock: a commit of a domain that is off closes the disks first.
        with store.locked(session.domain_uuid, stop=stop, name=session.domain_name):
            now = store.session(session.id)
    except InterruptedBySignalError:
        return None
    if now.state is not SessionState.COMMITTED:
        raise _error(now)
    return now.state


def _server() -> Any:
    """Return vbackup.http.server, which needs aiohttp."""
    try:
        from vbackup.http import server
    except ModuleNotFoundError as err:
        if err.name != "aiohttp":
            raise
        why = "A session is served over HTTPS by aiohttp"
        raise MissingPackageError("aiohttp", why, debian="python3-aiohttp", purpose="do that") from err
    return server


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises BusyError, UsageError."""
    error: Exception | None = None
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                return socket.create_server(address[:2], family=family)
            except OSError as err:  # a host without IPv6 has a localhost with it
                error = error or err
    except (OSError, UnicodeError, OverflowError) as err:
        error = err
    where, words = f"{host}:{port}", getattr(error, "strerror", None) or error
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        raise BusyError(f"Another process listens on {where} already; end it, or give another port.") from error
    raise UsageError(f"Cannot listen on {where}: {words}. Give an address of this host.") from error


def _url(host: str, port: int) -> str:
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _error(session: Session) -> SessionEndedError:
    """Return why a session could not be served to its commit."""
    if session.state is not SessionState.OPEN:
        return session_changes.ended(session)
    if session.has_expired(datetime.now(timezone.utc)):
        return SessionEndedError(session.id, SessionState.EXPIRED.value)
    return SessionEndedError(session.id, SessionState.FAILED.value, "QEMU does not serve it any more")


class _Session:
    """A session as vbackup.http serves it (vbackup.http.served.ServedSession)."""

    def __init__(self, session: Session, store: Store, tls_creds: Path) -> None:
        self._session, self._store = session, store
        self._disks = {disk.dev: _Disk(session, disk, store, tls_creds) for disk in session.disks}

    @property
    def disks(self) -> Mapping[str, ServedDisk]:
        """Its disks by dev."""
        return self._disks

    def watch(self) -> AbstractContextManager[Watch]:
        """Return a connection to a disk."""
        return next(iter(self._disks.values())).connection()

    def state(self) -> State:
        """Return how it stands."""
        try:
            now = self._store.session(self._session.id)
        except VbackupError as err:
            return State(0.0, str(err))
        if now.state is not SessionState.OPEN:
            return State(0.0, str(session_changes.ended(now)))
        left_s = (now.expires - datetime.now(timezone.utc)).total_seconds()
        return State(max(left_s, 0.0), str(_error(now)))


@dataclass(frozen=True)
class State:
    """How a session stands (vbackup.http.served.SessionEnd)."""

    left_s: float
    reason: str


class _Disk:
    """A disk as vbackup.http serves it (vbackup.http.served.ServedDisk)."""

    def __init__(self, session: Session, disk: SessionDisk, store: Store, tls_creds: Path) -> None:
        self._session, self._disk, self._store = session, disk, store
        self._address = nbd_address.parse(disk.uri)
        self._tls: ssl.SSLContext | None = session_changes.tls_context(self._address, session, tls_creds)

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self._disk.size_bytes

    def connection(self) -> NbdClient:
        """Return a new connection."""
        return NbdClient(self._address, tls=self._tls, timeout_s=READ_TIMEOUT_S)

    def reader(self) -> AbstractContextManager[Reader]:
        """Return a new connection."""
        return self.connection()

    def extents(self, query: MapQuery) -> dict[str, Any]:
        """Return the document with the extents, as ``vbackup session changes`` has it."""
        try:
            kind = Kind(query.kind)
        except ValueError:
            kinds = ", ".join(one.value for one in Kind)
            raise UsageError(f"{query.kind[:50]!r} is no kind of extents; there are {kinds}.") from None
        request = ChangesRequest(
            session=self._session.id,
            dev=self._disk.dev,
            offset_bytes=query.offset_bytes,
            length_bytes=query.length_bytes,
            max_results=query.max_results,
            kind=kind,
            checkpoint=query.checkpoint,
        )
        page = session_changes.page(request, self._session, self._disk, store=self._store, tls=self._tls)
        return {"schema": MAP_SCHEMA, **page.document()}
