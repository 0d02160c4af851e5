"""The NBD server of a domain's QEMU, and the exports of its pull sessions.

A QEMU has one NBD server. Sessions of a domain share it, each under a name of the socket in its own directory. It is
stopped with the last export, and only a session stops it: libvirt's own pull backup starts it too, and either of them
is refused then.

nbd-server-stop must not meet a client that has connected and not asked for an export yet. QEMU would wait for it in its
main loop, and so would the guest, for ever, even after that client has gone (seen on 7.2.22: nbd_server_free waits for
``connections``). So the socket loses its names first, and then all connections have to be gone; QEMU itself drops a
client that does not negotiate after 10 s. Nobody can be kept from connecting to a port of the network meanwhile: there
the connections are looked at just before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vbackup.engine.session_plan import SessionDiskPlan
from vbackup.errors import (
    BusyError,
    FdsNotNeededError,
    FdsNotPassedError,
    MalformedError,
    QmpError,
    StorageError,
    UnsuitableError,
)
from vbackup.fields import objects
from vbackup.files import storage_errors
from vbackup.names import Naming
from vbackup.qemu.monitor import Monitor
from vbackup.sessions import sockets
from vbackup.undo import Undo

log = logging.getLogger(__name__)

SOCKET = "nbd.sock"
#: How long QEMU may take to drop clients of an export that is removed.
REMOVAL_S, TICK_S = 10.0, 0.02
#: How long to wait for clients that have not asked for an export: QEMU gives them 10 s (NBD_DEFAULT_HANDSHAKE_MAX_SECS
#: in QEMU's include/block/nbd.h).
NEGOTIATION_S = 15.0
#: Name of the socket when nobody is to connect any more; whoever tries again knows by it whose server it is.
_STOPPING = "stopping.sock"


@dataclass(frozen=True)
class Place:
    """Where the disks of a session are served."""

    directory: Path  #: of the session
    listen: str | None = None  #: HOST:PORT, which needs ``tls``; None: the unix socket
    tls: Path | None = None  #: directory with ca-cert.pem, server-cert.pem and server-key.pem

    server: Path | None = None  #: where the unix socket was bound; None: at ``socket``
    #: of a domain on another host: the states of the unix sockets that were bound at a path there
    states: Callable[[str], Collection[str]] | None = None
    makes_socket: bool = False  #: the server there makes the socket itself: it is a storage daemon, of that user

    @property
    def socket(self) -> Path | None:
        """The unix socket, if it is one."""
        return None if self.listen is not None else self.directory / SOCKET

    def uri(self, export: str) -> str:
        """Return the NBD URI of an export (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md)."""
        if self.listen is not None:
            return f"nbds://{self.listen}/{quote(export)}"
        return f"nbd+unix:///{quote(export)}?socket={quote(os.fspath(self.directory / SOCKET), safe='/')}"


def exports(monitor: Monitor) -> frozenset[str]:
    """Return the ids of all exports of QEMU's NBD server, whoever made them; others do without it."""
    reply = monitor.execute("query-block-exports")
    entries = objects(reply, "query-block-exports", MalformedError)
    return frozenset(entry.text("id") for entry in entries if entry.text("type") == "nbd")


def of_tracker(monitor: Monitor, naming: Naming) -> frozenset[str]:
    """Return the ids of a tracker's exports."""
    return frozenset(one for one in exports(monitor) if one.startswith(naming.prefix))


def export_id(naming: Naming, session_id: str, dev: str) -> str:
    """Return the id of the export of a disk."""
    return f"{naming.prefix}{session_id}-{dev}"


def start(monitor: Monitor, place: Place, naming: Naming, *, undo: Undo) -> None:
    """Start the NBD server at a place; ``undo`` gets its end.

    Raises BusyError if another server runs, UnsuitableError if the connection carries no descriptors, StorageError if
    QEMU cannot use the certificates or nobody can listen there.
    """
    undo.push("stop the NBD server", lambda: stop_if_unused(monitor, naming, place))
    creds = _add_creds(monitor, place.tls, naming) if place.tls is not None else {}
    if place.states is None:
        address = _pass_socket(monitor, place, naming)
    elif place.makes_socket:
        address = {"type": "unix", "data": {"path": str(place.server)}}
    else:  # the helper there has passed it
        address = {"type": "fd", "data": {"str": fd_name(naming)}}
    try:
        monitor.execute("nbd-server-start", {"addr": address, **creds})
    except QmpError as err:
        if "already running" in err.description:
            raise BusyError(
                "The domain's QEMU runs its NBD server for somebody else, such as libvirt's own pull backup ('virsh"
                " domjobinfo' shows it), and it has only one. Run the same command again when that has ended."
            ) from err
        raise


def _pass_socket(monitor: Monitor, place: Place, naming: Naming) -> dict[str, object]:
    """Give QEMU a socket that listens at the place; return its address."""
    name = fd_name(naming)
    listening = (
        sockets.listen_unix(place.directory / SOCKET) if place.listen is None else sockets.listen_tcp(place.listen)
    )
    try:
        monitor.execute("getfd", {"fdname": name}, fd=listening.fileno())
    except FdsNotNeededError:
        # It opens sockets with our rights, in our directory.
        listening.close()
        (place.directory / SOCKET).unlink(missing_ok=True)
        return _address(place)
    except FdsNotPassedError as err:
        raise UnsuitableError(
            f"A session needs a connection that can carry file descriptors, and this one cannot ({err}) Run vbackup on"
            " the host of the domain."
        ) from err
    finally:
        listening.close()
    return {"type": "fd", "data": {"str": name}}


def share(first: Path, place: Place) -> None:
    """Give the server that listens at ``first`` a second name. Raises StorageError."""
    with storage_errors(f"make the socket {place.directory / SOCKET}"):
        os.link(first, place.directory / SOCKET)


def add_exports(monitor: Monitor, disks: Iterable[SessionDiskPlan], *, undo: Undo) -> None:
    """Export the disks, read-only, with the contexts of their bitmaps; ``undo`` gets their end. Raises QmpError."""
    for disk in disks:
        undo.push(
            f"end the export of disk {disk.dev}",
            lambda export_id=disk.export_id: remove_exports(monitor, [export_id]),  # type: ignore[misc]
        )
        options = {
            "type": "nbd",
            "id": disk.export_id,
            "node-name": disk.exported,
            "name": disk.export,
            "writable": False,
        }
        monitor.execute("block-export-add", {**options, "bitmaps": list(disk.since)} if disk.since else options)


def remove_exports(monitor: Monitor, export_ids: Collection[str]) -> None:
    """Remove those of the exports that exist, and their clients' connections; wait until they are gone.

    Raises StorageError if one does not go.
    """
    deadline, pause = time.monotonic() + REMOVAL_S, threading.Event()
    asked: set[str] = set()
    while True:
        left = exports(monitor) & frozenset(export_ids)
        if not left:
            return
        for export_id in sorted(left - asked):
            try:
                monitor.execute("block-export-del", {"id": export_id, "mode": "hard"})
            except QmpError as err:
                log.debug("%s", err)  # it is shutting down
            asked.add(export_id)
        if time.monotonic() > deadline:
            raise StorageError(f"QEMU has not ended the export {min(left)} within {REMOVAL_S:.0f} s.")
        pause.wait(TICK_S)


def stop_if_unused(monitor: Monitor, naming: Naming, place: Place) -> None:
    """Stop the server if it is one of ours and exports nothing, and take back what it was started with.

    That somebody greets at a session's socket, or at its port and QEMU has our certificates, proves that it is ours.
    Raises BusyError if a client that has not asked for an export keeps its connection.
    """
    _forget(monitor, "closefd", {"fdname": fd_name(naming)})  # a socket that no server has got
    if place.states is not None:
        is_ours = place.server is not None and sockets.LISTENING in place.states(str(place.server))
    else:
        is_ours = is_served(place) if place.listen is None else _is_our_port(monitor, naming, place.listen)
    if not is_ours:
        _forget(monitor, "object-del", {"id": _creds_id(naming)})
    if not is_ours or exports(monitor):
        return
    if place.socket is not None and place.socket.exists():
        with storage_errors(f"rename {place.socket}"):
            place.socket.rename(place.directory / _STOPPING)
    _wait_for_clients(place)
    stop(monitor)
    _forget(monitor, "object-del", {"id": _creds_id(naming)})


def is_served(place: Place) -> bool:
    """Return True if an NBD server greets at a session's unix socket, whatever that is called by now."""
    return place.socket is not None and any(
        sockets.is_served(path) for path in (place.socket, place.directory / _STOPPING)
    )


def _wait_for_clients(place: Place) -> None:
    """Wait until nobody is connected. Raises BusyError."""
    deadline, pause = time.monotonic() + NEGOTIATION_S, threading.Event()
    while True:
        if place.states is not None:
            is_busy = sockets.CONNECTED in place.states(str(place.server))
        elif place.listen is not None:
            is_busy = sockets.has_tcp_connections(place.listen)
        else:
            is_busy = sockets.has_connections(place.server or place.directory / SOCKET)
        if not is_busy:
            return
        if time.monotonic() > deadline:
            raise BusyError(
                "a client is connected to the NBD server and asks for nothing. QEMU cannot stop the server without a"
                " danger for the guest before that client has gone"
            )
        pause.wait(TICK_S)


def _is_our_port(monitor: Monitor, naming: Naming, listen: str) -> bool:
    """Return True if QEMU has our certificates, and somebody greets where its server was to listen."""
    objects_ = objects(monitor.execute("qom-list", {"path": "/objects"}), "qom-list", MalformedError)
    return any(one.text("name") == _creds_id(naming) for one in objects_) and sockets.is_served_at(listen)


def _forget(monitor: Monitor, command: str, arguments: dict[str, str]) -> None:
    """Take something back that may not be there."""
    try:
        monitor.execute(command, arguments)
    except QmpError as err:
        log.debug("%s", err)


def stop(monitor: Monitor) -> None:
    """Stop the NBD server, if one runs."""
    try:
        monitor.execute("nbd-server-stop")
    except QmpError as err:
        log.debug("%s", err)


def _address(place: Place) -> dict[str, object]:
    if place.listen is None:
        return {"type": "unix", "data": {"path": os.fspath(place.directory / SOCKET)}}
    host, port = sockets.split_address(place.listen)
    return {"type": "inet", "data": {"host": host, "port": str(port)}}


def _add_creds(monitor: Monitor, directory: Path, naming: Naming) -> dict[str, str]:
    """Give QEMU the server's certificate; clients must have one of the same authority. Raises StorageError."""
    options = {
        "qom-type": "tls-creds-x509",
        "id": _creds_id(naming),
        "dir": os.fspath(directory.absolute()),
        "endpoint": "server",
        "verify-peer": True,
    }
    try:
        monitor.execute("object-add", options)
    except QmpError as err:
        raise StorageError(
            f"QEMU cannot use the certificates in {directory}: {err.description.rstrip('.')}. It needs ca-cert.pem,"
            " server-cert.pem and server-key.pem there, and reads them as the user that it runs as."
        ) from err
    return {"tls-creds": _creds_id(naming)}


def fd_name(naming: Naming) -> str:
    """Return what QEMU calls the socket that its server gets."""
    return f"{naming.prefix}nbd"


def _creds_id(naming: Naming) -> str:
    return f"{naming.prefix}tls"
