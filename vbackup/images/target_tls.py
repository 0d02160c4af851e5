"""Let a QEMU on another host write target images over TLS, straight to a port of this host.

    this host        the server's certificate (ca-cert.pem, server-cert.pem, server-key.pem) or keys.psk
    the hypervisor   a client's (ca-cert.pem, client-cert.pem, client-key.pem) or keys.psk, which QEMU's user can read

Only a client with a certificate of the same authority, or with the key, gets further than the greeting. The helper on
the hypervisor makes each connection and hands it to QEMU when the server has greeted, as it does with SSH. The kernel
there ends one that stays silent (TCP_USER_TIMEOUT), since QEMU itself would wait for ever. What QEMU refuses in the
negotiation would make it stand still until its time-out, so qemu-img tries the same there first.

The files are as QEMU has them: https://www.qemu.org/docs/master/system/tls.html
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vbackup.errors import BusyError, QmpError, RemoteError, StorageError, UnsuitableError, VbackupError
from vbackup.files import storage_errors
from vbackup.names import Naming
from vbackup.qemu.monitor import Monitor
from vbackup.remote.link import Link

log = logging.getLogger(__name__)

#: Where libvirt has the certificates of a QEMU that is a client (nbd_tls_x509_cert_dir, default_tls_x509_cert_dir).
LIBVIRTS_DIRECTORIES = ("/etc/pki/libvirt-nbd", "/etc/pki/qemu")
#: The name of the one who has the key, in keys.psk.
PSK_USER = "vbackup"
#: How long qemu-img may try to open an export.
TRIAL_S = 3
#: How long to wait before a look at whether a port is free again, or the user has given up.
TICK_S = 0.25
_PSK_FILE = "keys.psk"
_SERVER_FILES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")


@dataclass(frozen=True)
class TlsPlace:
    """Where TLS is spoken, and with which keys."""

    host: str  #: name or address of this host, by which hypervisors reach it; it is in the server's certificate
    ports: range  #: each backup takes one
    creds: Path  #: directory of the server's certificate or key
    creds_there: str | None = None  #: directory of the client's, on the hypervisor; None: libvirt's

    @property
    def is_psk(self) -> bool:
        """True if both sides know a key, False if they have certificates."""
        return (self.creds / _PSK_FILE).exists()

    def check(self) -> None:
        """Raise UnsuitableError if the server's files are not there, StorageError if they cannot be looked at."""
        with storage_errors(f"read {self.creds}"):
            missing = [] if self.is_psk else [name for name in _SERVER_FILES if not (self.creds / name).exists()]
        if missing:
            raise UnsuitableError(
                f"{self.creds} has no {' and no '.join(missing)}: TLS needs {', '.join(_SERVER_FILES)} there, or"
                f" {_PSK_FILE} with the line {PSK_USER}:KEY."
            )


@dataclass
class _Taken:
    """The ports that backups of this process have."""

    ports: set[tuple[str, int]] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)


_TAKEN = _Taken()


@contextlib.contextmanager
def port(place: TlsPlace, *, check: Callable[[], None]) -> Iterator[int]:
    """Yield a port that is free, and wait for one while other backups of this process have them all.

    ``check`` is called while it waits, and may raise. Raises BusyError if other processes have them, UnsuitableError if
    this host does not have the address.
    """
    number = _take(place, check)
    try:
        yield number
    finally:
        with _TAKEN.changed:
            _TAKEN.ports.discard((place.host, number))
            _TAKEN.changed.notify_all()


def _take(place: TlsPlace, check: Callable[[], None]) -> int:
    while True:
        with _TAKEN.changed:
            ours = {number for host, number in _TAKEN.ports if host == place.host}
            for number in place.ports:
                if number not in ours and _is_free(place.host, number):
                    _TAKEN.ports.add((place.host, number))
                    return number
            if ours.isdisjoint(place.ports):
                raise BusyError(
                    f"No port of {_ports(place)} of {place.host} is free: another program listens there, or another"
                    " vbackup. Run the same command again later, or give --listen more ports (HOST:PORT-PORT)."
                )
            _TAKEN.changed.wait(TICK_S)
        check()


def _ports(place: TlsPlace) -> str:
    return f"{place.ports[0]}" if len(place.ports) == 1 else f"{place.ports[0]}-{place.ports[-1]}"


def _is_free(host: str, number: int) -> bool:
    """Return True if a server can listen there. Raises UnsuitableError if the address is not one of this host."""
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            return False
        raise UnsuitableError(
            f"Nothing can listen at {host}:{number}: {err.strerror or err}. --listen takes a name or an address of this"
            " host, by which the hypervisors reach it."
        ) from err
    return True


def server_options(place: TlsPlace, creds_id: str) -> dict[str, Any]:
    """Return the object with which a server on this host proves who it is, and has its clients prove it."""
    more = {} if place.is_psk else {"verify-peer": True}
    return {**_object(place, creds_id, str(place.creds.absolute()), "server"), **more}


def _object(place: TlsPlace, creds_id: str, directory: str, endpoint: str) -> dict[str, Any]:
    kind = "tls-creds-psk" if place.is_psk else "tls-creds-x509"
    return {"qom-type": kind, "id": creds_id, "dir": directory, "endpoint": endpoint}


@dataclass(frozen=True)
class TlsConnector:
    """Connects the QEMU of a domain to the port."""

    link: Link
    uuid: str
    place: TlsPlace
    port: int
    creds_id: str
    creds_there: str  #: the directory that QEMU took
    tried: list[str] = field(default_factory=list)  #: the first export, once qemu-img has opened it

    def address(self, monitor: Monitor, name: str) -> dict[str, Any]:
        """Let the helper give QEMU the descriptor of a connected socket."""
        if not self.tried:
            self._try(name)
            self.tried.append(name)
        try:
            self.link.pass_nbd_by_tcp(self.uuid, name, self.place.host, self.port)
        except RemoteError as err:
            raise StorageError(str(err)) from err
        return {"type": "fd", "str": name}

    def members(self) -> dict[str, Any]:
        """Return what the node has in addition: whom QEMU expects there."""
        hostname = {} if self.place.is_psk else {"tls-hostname": self.place.host}
        return {"tls-creds": self.creds_id, **hostname}

    def _try(self, export: str) -> None:
        """Open the export with qemu-img there. Raises UnsuitableError; without that program nothing is tried."""
        creds = _client(self.place, self.creds_id, self.creds_there)
        node = {
            "driver": "nbd",
            "server.type": "inet",
            "server.host": self.place.host,
            "server.port": str(self.port),
            "export": export,
            "tls-creds": self.creds_id,
            "open-timeout": str(TRIAL_S),
        }
        argv = [
            "qemu-img",
            "info",
            "--object",
            _option(creds.pop("qom-type"), creds),
            "--image-opts",
            _option("", node),
        ]
        try:
            done = self.link.try_run(argv, timeout_s=4 * TRIAL_S)
        except RemoteError as err:
            log.debug("TLS is not tried: %s", err)
            return
        if done.status != 0:
            said = done.stderr.strip().splitlines() or [f"it ended with status {done.status}"]
            raise UnsuitableError(
                f"QEMU on {self.link.host} could not speak TLS with {self.place.host}:{self.port}:"
                f" {said[-1].rpartition(': ')[2].rstrip('.')}. Check that the certificates or keys on both sides belong"
                " together and are valid, that the server's names the host, and that no firewall keeps them apart. The"
                " guest was not touched."
            )


def _option(first: str, members: dict[str, Any]) -> str:
    """Return an option as QEMU's command line has it, where a comma is doubled."""
    words = [f"{key}={value.replace(',', ',,')}" for key, value in members.items()]
    return ",".join([first, *words] if first else words)


def _client(place: TlsPlace, creds_id: str, directory: str) -> dict[str, Any]:
    more = {"username": PSK_USER} if place.is_psk else {}
    return {**_object(place, creds_id, directory, "client"), **more}


@contextlib.contextmanager
def credentials(monitor: Monitor, place: TlsPlace, naming: Naming, *, host: str) -> Iterator[tuple[str, str]]:
    """Let QEMU have its certificate or key during the block; yield the object's id, and the directory it took.

    ``host``: the hypervisor, for people. Raises UnsuitableError.
    """
    creds_id = f"{naming.prefix}target-tls"
    _forget(monitor, creds_id)  # what a dead run has left may be of an earlier certificate
    directory = _add(monitor, place, creds_id, host)
    try:
        yield creds_id, directory
    finally:
        _forget(monitor, creds_id)


def _add(monitor: Monitor, place: TlsPlace, creds_id: str, host: str) -> str:
    directories: Sequence[str] = LIBVIRTS_DIRECTORIES if place.creds_there is None else (place.creds_there,)
    refusals = []
    for directory in directories:
        try:
            monitor.execute("object-add", _client(place, creds_id, directory))
        except QmpError as err:
            refusals.append(f"{directory}: {err.description.rstrip('.')}")
        else:
            return directory
    files = _PSK_FILE if place.is_psk else "ca-cert.pem, client-cert.pem and client-key.pem"
    raise UnsuitableError(
        f"QEMU on {host} cannot use TLS ({'; '.join(refusals)}). It needs {files} in a directory there, and reads them"
        " as the user that it runs as; --hypervisor-tls-creds names another directory."
    )


def _forget(monitor: Monitor, creds_id: str) -> None:
    try:
        monitor.execute("object-del", {"id": creds_id})
    except VbackupError as err:  # there is none, or QEMU is gone with it
        log.debug("%s", err)
