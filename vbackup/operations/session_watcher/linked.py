"""The SSH connection of a watcher whose session is on another host.

The helper there makes the socket of QEMU's NBD server, and this connection forwards it to a unix socket of this host.
So the session lasts as long as the watcher and its connection: when that is lost, the helper ends the session's
exports, jobs and overlays, and the server. The guest goes on, and the bitmaps stay.

Of a domain that is off, the helper starts the storage daemon, whose monitor is forwarded too. It ends with the
connection, so that no image stays locked.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vbackup.engine import session_server
from vbackup.engine.fleecing_area import RemoteArea
from vbackup.errors import (
    BusyError,
    ForwardingError,
    LinkLostError,
    MalformedError,
    RemoteError,
    StorageError,
    UnsuitableError,
    VbackupError,
)
from vbackup.fields import Fields, parse_json
from vbackup.names import Naming
from vbackup.process import Process
from vbackup.qemu.storage_daemon import PROGRAM
from vbackup.remote import address, daemon
from vbackup.remote.link import Link
from vbackup.sessions import sockets
from vbackup.sessions.record import Session

#: How long a daemon may take to end after each signal: it has nothing to store.
END_S = 10.0
_FORWARDING = "forwarding"
#: The errors that whoever began the session raises again as they are.
_KINDS: Mapping[str, type[VbackupError]] = {
    _FORWARDING: ForwardingError,
    "unsuitable": UnsuitableError,
    "busy": BusyError,
}


@dataclass(frozen=True)
class Order:
    """What the watcher has to have forwarded."""

    uuid: str  #: of the domain
    owner: str  #: the tracker, as it is named in QEMU
    server: str | None = None  #: where the server of another session of the domain was bound, which this one uses
    shared: str | None = None  #: path of that session's socket there
    daemon: str | None = None  #: the session, if the domain is off, and a storage daemon has to be started

    @classmethod
    def of(cls, uuid: str, naming: Naming, first: Session | None) -> Order:
        """Return the order for a tracker's session; ``first`` is open on the domain and has a server."""
        if first is None or first.internals is None:
            return cls(uuid, naming.repository_id)
        return cls(uuid, naming.repository_id, first.internals.server, first.internals.there)

    def document(self) -> Mapping[str, Any]:
        """Return it as a JSON object: the arguments of this class."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """What the watcher says when it has the connection, or cannot have it."""

    pid: int
    path: str = ""  #: of the socket on this host
    there: str = ""  #: of the socket on the other host
    server: str = ""  #: where the server that listens there is bound
    monitor: str = ""  #: path on this host of the monitor of a storage daemon
    daemon: Process | None = None  #: that daemon, on the other host
    error: str | None = None
    kind: str = ""  #: of the error: one of _KINDS, or "" for any other

    @classmethod
    def of(cls, err: VbackupError) -> Answer:
        """Return the answer for an error."""
        kind = next((kind for kind, one in _KINDS.items() if isinstance(err, one)), "")
        if isinstance(err, ForwardingError):
            return cls(os.getpid(), error=err.ssh_message, kind=kind)
        return cls(os.getpid(), error=err.reason if isinstance(err, RemoteError) else str(err), kind=kind)

    def document(self) -> Mapping[str, Any]:
        """Return it as a JSON object."""
        return {
            "pid": self.pid,
            "path": self.path,
            "there": self.there,
            "server": self.server,
            "monitor": self.monitor,
            "daemon": None if self.daemon is None else self.daemon.document(),
            "error": self.error,
            "kind": self.kind,
        }

    @classmethod
    def read(cls, said: bytes) -> Answer:
        """Return what a watcher has said. Raises MalformedError if it has said nothing."""
        try:
            fields = Fields(parse_json(said.decode()), "the answer of the watcher", MalformedError)
        except ValueError as err:
            raise MalformedError("The watcher has not answered.") from err
        return cls(
            pid=fields.integer("pid"),
            path=fields.text("path"),
            there=fields.text("there"),
            server=fields.text("server"),
            monitor=fields.text("monitor"),
            daemon=Process.read(fields.object("daemon")) if "daemon" in fields else None,
            error=fields.optional_text("error"),
            kind=fields.text("kind"),
        )

    def watcher(self, host: str) -> Process:
        """Return the process.

        Raises ForwardingError, BusyError, UnsuitableError, RemoteError if it cannot serve the session.
        """
        if self.error is not None and self.kind in _KINDS:
            if self.kind == _FORWARDING:
                raise ForwardingError(host, self.error)
            raise _KINDS[self.kind](self.error)
        found = Process.of(self.pid)
        if self.error is not None or found is None:
            raise RemoteError(host, "have the NBD server of the disks forwarded", self.error or "the process has ended")
        return found


@dataclass(frozen=True)
class Forwarded:
    """The connection, and what it leads to."""

    link: Link
    uuid: str  #: of the domain
    path: Path  #: of the socket on this host
    there: str
    server: str
    daemon: Process | None = None  #: the storage daemon of a domain that is off
    monitor: Path | None = None  #: of its monitor on this host

    @property
    def is_lost(self) -> bool:
        """True once the connection is known to be lost."""
        return self.link.is_lost

    def answer(self) -> Answer:
        """Return what whoever began the session has to know."""
        monitor = "" if self.monitor is None else os.fspath(self.monitor)
        return Answer(os.getpid(), os.fspath(self.path), self.there, self.server, monitor, self.daemon)

    def has_server(self) -> bool:
        """Return True unless QEMU's NBD server has ended; a connection that is lost shows elsewhere."""
        try:
            if self.daemon is not None:
                return self.link.ended(self.daemon.pid, within_s=0.0) is None
            return sockets.LISTENING in self.link.socket_states(self.server)
        except (LinkLostError, RemoteError):
            return True

    def is_full(self, directory: str, reserve_bytes: int) -> bool:
        """Return True if a directory there is nearly full; one that cannot be asked is not."""
        try:
            return RemoteArea(self.link, self.uuid, directory).free_bytes() < reserve_bytes
        except (LinkLostError, StorageError):
            return False

    def end_daemon(self) -> None:
        """End the storage daemon of a domain that is off, which writes nothing; the helper does it with the link."""
        if self.daemon is None:
            return
        with suppress(LinkLostError, RemoteError):
            for signum in (signal.SIGTERM, signal.SIGKILL):
                self.link.signal(self.daemon.pid, signum)
                if self.link.ended(self.daemon.pid, within_s=END_S) is not None:
                    return

    def release(self) -> None:
        """Nothing of the session is left: the helper need not look."""
        with suppress(LinkLostError, RemoteError):  # then it looks
            self.link.unguard(self.uuid)


@contextmanager
def opened(uri: str, order: Order) -> Iterator[Forwarded]:
    """Yield the connection with a socket of the domain's QEMU; without ``order.shared``, QEMU has got it.

    Waits for the helper of an earlier session of the tracker whose connection was lost. Raises SshError, HelperError,
    ForwardingError, LinkLostError, RemoteError; if the domain is off, also UnsuitableError, and BusyError if another
    vbackup has its disks open.
    """
    place = address.parse(uri)
    assert place is not None
    naming = Naming(order.owner)
    with Link(place) as link:
        if order.daemon is not None:
            yield _with_daemon(link, order.uuid, order.daemon)
            return
        link.guard_session(order.uuid, naming)
        if order.server is None or order.shared is None:
            there = server = link.listen(order.uuid, session_server.fd_name(naming))
        else:
            there, server = link.share(order.shared), order.server
        link.guard_session(order.uuid, naming, server=server)
        yield Forwarded(link, order.uuid, link.connect(there), there, server)


def _with_daemon(link: Link, uuid: str, session_id: str) -> Forwarded:
    """Start a storage daemon, which has no images yet, and have it forwarded; the domain has to stay off meanwhile."""
    pid, monitor = daemon.launch(link, PROGRAM)
    link.mark_session(uuid, session_id, pid)
    there = f"{link.directory()}/{session_server.SOCKET}"  # which it makes when it is told to
    path = link.connect(there)
    return Forwarded(link, uuid, path, there, there, link.process(pid), link.connect(monitor))


def say(answer: Answer) -> None:
    """Write the answer to standard output, and close that: whoever waits reads up to its end."""
    os.write(1, json.dumps(answer.document()).encode())
    os.dup2(2, 1)
