"""The SSH connection of a watcher whose session is on another host.

The helper there makes the socket of QEMU's NBD server, and this connection forwards it to a unix socket of this host.
So the session lasts as long as the watcher and its connection: when that is lost, the helper ends the session's
exports, jobs and overlays, and the server. The guest goes on, and the bitmaps stay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.engine import session_server
from vbackup.engine.fleecing_area import RemoteArea
from vbackup.errors import ForwardingError, LinkLostError, MalformedError, RemoteError, StorageError, VbackupError
from vbackup.fields import Fields, parse_json
from vbackup.names import Naming
from vbackup.process import Process
from vbackup.remote import address
from vbackup.remote.link import Link
from vbackup.sessions import sockets
from vbackup.sessions.record import Session


@dataclass(frozen=True)
class Order:
    """What the watcher has to have forwarded."""

    uuid: str  #: of the domain
    owner: str  #: the tracker, as it is named in QEMU
    server: str | None = None  #: where the server of another session of the domain was bound, which this one uses
    shared: str | None = None  #: path of that session's socket there

    @classmethod
    def of(cls, uuid: str, naming: Naming, first: Session | None) -> Order:
        """Return the order for a tracker's session; ``first`` is open on the domain and has a server."""
        if first is None or first.internals is None:
            return cls(uuid, naming.repository_id)
        return cls(uuid, naming.repository_id, first.internals.server, first.internals.there)

    def document(self) -> Mapping[str, Any]:
        """Return it as a JSON object: the arguments of this class."""
        return {"uuid": self.uuid, "owner": self.owner, "server": self.server, "shared": self.shared}


@dataclass(frozen=True)
class Answer:
    """What the watcher says when it has the connection, or cannot have it."""

    pid: int
    path: str = ""  #: of the socket on this host
    there: str = ""  #: of the socket on the other host
    server: str = ""  #: where the server that listens there is bound
    error: str | None = None
    is_of_forwarding: bool = False  #: the error is that of ssh, which may not forward

    @classmethod
    def of(cls, err: VbackupError) -> Answer:
        """Return the answer for an error."""
        if isinstance(err, ForwardingError):
            return cls(os.getpid(), error=err.ssh_message, is_of_forwarding=True)
        return cls(os.getpid(), error=err.reason if isinstance(err, RemoteError) else str(err))

    def document(self) -> Mapping[str, Any]:
        """Return it as a JSON object."""
        return {
            "pid": self.pid,
            "path": self.path,
            "there": self.there,
            "server": self.server,
            "error": self.error,
            "is_of_forwarding": self.is_of_forwarding,
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
            error=fields.optional_text("error"),
            is_of_forwarding=fields.boolean("is_of_forwarding"),
        )

    def watcher(self, host: str) -> Process:
        """Return the process. Raises ForwardingError, RemoteError if it has no connection."""
        if self.error is not None and self.is_of_forwarding:
            raise ForwardingError(host, self.error)
        found = Process.of(self.pid)
        if self.error is not None or found is None:
            raise RemoteError(host, "have QEMU's NBD server forwarded", self.error or "the process has ended")
        return found


@dataclass(frozen=True)
class Forwarded:
    """The connection, and what it leads to."""

    link: Link
    uuid: str  #: of the domain
    path: Path  #: of the socket on this host
    there: str
    server: str

    @property
    def is_lost(self) -> bool:
        """True once the connection is known to be lost."""
        return self.link.is_lost

    def answer(self) -> Answer:
        """Return what whoever began the session has to know."""
        return Answer(os.getpid(), os.fspath(self.path), self.there, self.server)

    def has_server(self) -> bool:
        """Return True unless QEMU's NBD server has ended; a connection that is lost shows elsewhere."""
        try:
            return sockets.LISTENING in self.link.socket_states(self.server)
        except (LinkLostError, RemoteError):
            return True

    def is_full(self, directory: str, reserve_bytes: int) -> bool:
        """Return True if a directory there is nearly full; one that cannot be asked is not."""
        try:
            return RemoteArea(self.link, self.uuid, directory).free_bytes() < reserve_bytes
        except (LinkLostError, StorageError):
            return False

    def release(self) -> None:
        """Nothing of the session is left: the helper need not look."""
        with suppress(LinkLostError, RemoteError):  # then it looks
            self.link.unguard(self.uuid)


@contextmanager
def opened(uri: str, order: Order) -> Iterator[Forwarded]:
    """Yield the connection with a socket of the domain's QEMU; without ``order.shared``, QEMU has got it.

    Waits for the helper of an earlier session of the tracker whose connection was lost. Raises SshError, HelperError,
    ForwardingError, LinkLostError, RemoteError.
    """
    place = address.parse(uri)
    assert place is not None
    naming = Naming(order.owner)
    with Link(place) as link:
        link.guard_session(order.uuid, naming)
        if order.server is None or order.shared is None:
            there = server = link.listen(order.uuid, session_server.fd_name(naming))
        else:
            there, server = link.share(order.shared), order.server
        link.guard_session(order.uuid, naming, server=server)
        yield Forwarded(link, order.uuid, link.connect(there), there, server)


def say(answer: Answer) -> None:
    """Write the answer to standard output, and close that: whoever waits reads up to its end."""
    os.write(1, json.dumps(answer.document()).encode())
    os.dup2(2, 1)
