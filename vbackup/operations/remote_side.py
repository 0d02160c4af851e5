"""How the data of a backup comes to the repository from a QEMU on another host: by SSH, or through shared storage.

The user's ssh carries it (vbackup.remote) unless the repository is at the same path on both hosts: QEMU then writes
it there itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbackup.domain.host import Host
from vbackup.domain.source import Source
from vbackup.errors import LinkLostError, RemoteError, StorageError, UnsuitableError
from vbackup.files import storage_errors
from vbackup.model import Transport
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.engine.unfinished import LockedDomain
    from vbackup.images.target_server import ServedTargets
    from vbackup.images.target_tls import TlsPlace
    from vbackup.remote.link import Link

_TOKEN_BYTES = 32


@dataclass(frozen=True)
class LinkConnector:
    """Connects the QEMU of a domain through the link."""

    link: Link
    uuid: str
    socket: str  #: the forwarded one, on the hypervisor
    is_running: bool  #: the domain has a QEMU

    def address(self, monitor: Monitor, name: str) -> dict[str, Any]:
        """Let the helper give QEMU the descriptor of a connected socket.

        A storage daemon there, which takes no descriptors, has the rights of the helper: it connects by itself.
        """
        if not self.is_running:
            return {"type": "unix", "path": self.socket}
        try:
            self.link.pass_nbd(self.uuid, name, self.socket)
        except RemoteError as err:
            raise StorageError(str(err)) from err
        return {"type": "fd", "str": name}


def chosen(asked: Transport, host: Host, repository: Repository, *, stop: Stop) -> Transport:
    """Return SSH, TLS or PATH: what was asked for, or else PATH exactly if the host of libvirt has the repository.

    A local libvirt, and one that is not reached by SSH, has only PATH. Raises UnsuitableError if SSH is asked for
    there, what opening a link raises, StorageError.
    """
    if host.is_local or not host.has_link:
        if asked in (Transport.SSH, Transport.TLS):
            why = "no data can come through it" if asked is Transport.SSH else "nothing there watches over the data"
            raise UnsuitableError(
                f"The connection {host.real_uri} is not by SSH, so {why}: use a URI such as"
                " qemu+ssh://root@HOST/system, or leave out --transport."
            )
        return Transport.PATH
    if asked is not Transport.AUTO:
        return asked
    return Transport.PATH if shares(host.link(check=stop.check), repository) else Transport.SSH


def shares(link: Link, repository: Repository) -> bool:
    """Return True if the other host has this very repository at the same path: a new file can be read there.

    Raises LinkLostError, StorageError.
    """
    import tempfile  # other backups need none

    token = os.urandom(_TOKEN_BYTES)
    with (
        storage_errors(f"write to {repository.path}"),
        tempfile.NamedTemporaryFile(dir=repository.path.resolve(), prefix=".vbackup-token-") as file,
    ):
        file.write(token)
        file.flush()
        os.fsync(file.fileno())
        try:
            return next(link.read_file(file.name), b"") == token  # the other host need not say how much it sends
        except RemoteError:
            return False


@contextmanager
def served(source: Source, reporter: Reporter, *, stop: Stop) -> Iterator[ServedTargets]:
    """Serve target images to the QEMU of a domain, or the storage daemon, through the link while the block runs.

    Raises what opening a link raises, ForwardingError, UnsuitableError, StorageDaemonGoneError, StorageError.
    """
    from vbackup.images.target_server import ServedTargets, TargetServer  # other backups need none

    with TargetServer(reporter) as server:
        link = source.handle.host.link(check=stop.check)
        socket = link.forward(server.socket)
        try:
            yield ServedTargets(server, LinkConnector(link, source.handle.uuid, socket, source.is_running))
        finally:
            _end(link, socket)


@contextmanager
def served_by_tls(
    place: TlsPlace, domain: LockedDomain, reporter: Reporter, *, check: Callable[[], None]
) -> Iterator[ServedTargets]:
    """Serve target images at a port of this host, to a domain's running QEMU, while the block runs.

    ``check`` is called while all ports are taken. Raises what ``served`` raises, BusyError.
    """
    from vbackup.images import target_tls  # other backups need none of them
    from vbackup.images.target_server import Listening, ServedTargets, TargetServer
    from vbackup.images.target_tls import TlsConnector

    place.check()
    handle = domain.source.handle
    with ExitStack() as stack:
        port = stack.enter_context(target_tls.port(place, check=check))
        creds = target_tls.server_options(place, "tls")
        server = stack.enter_context(TargetServer(reporter, Listening(place.host, port, creds)))
        link = handle.host.link(check=check)
        creds_id, directory = stack.enter_context(
            target_tls.credentials(domain.monitor, place, domain.naming, host=link.host)
        )
        connector = TlsConnector(link, handle.uuid, place, port, creds_id, directory)
        yield ServedTargets(server, connector, connector.members())


def _end(link: Link, socket: str) -> None:
    with suppress(LinkLostError, RemoteError):  # it ended with the link
        link.end_forward(socket)
