"""What is different when the domain of a pull session is on another host, which SSH reaches.

The watcher has a connection of its own there, through which the disks are served here. Of a domain that runs, it has
the NBD server of QEMU forwarded; of one that is off, it has a storage daemon started, which this process then uses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vbackup.domain.host import DomainHandle
from vbackup.engine import session_server
from vbackup.engine.audit_scratch import RemoteScratch
from vbackup.engine.session_server import Place
from vbackup.engine.session_survey import SessionDomain
from vbackup.errors import UnsuitableError
from vbackup.files import storage_errors
from vbackup.images import throwaway
from vbackup.names import Naming
from vbackup.operations import session_daemon, session_watcher
from vbackup.operations.session_watcher.linked import Order
from vbackup.remote.daemon import KeptDaemon
from vbackup.sessions.record import Session
from vbackup.sessions.store import DomainStore
from vbackup.stop import Stop


def refuse(handle: DomainHandle, *, listen: str | None) -> None:
    """Raise UnsuitableError for a session that a domain on another host cannot have; ``listen``: of the request."""
    uri = handle.host.real_uri
    others = (
        f"run 'vbackup session begin' on that host, or back domain {handle.name} up from here with 'vbackup backup',"
        " which needs no session"
    )
    if not handle.host.has_link:
        raise UnsuitableError(
            f"{uri} is another host, and a session of a domain there needs SSH, through which its disks are served"
            f" here: use a URI such as qemu+ssh://root@HOST/system, {others}."
        )
    if listen is not None:
        raise UnsuitableError(
            f"{uri} is another host, whose disks are served here, on a unix socket only: leave out --listen, and use"
            f" 'vbackup serve-session' for other hosts, or {others}."
        )


def watch_running(
    session: Session,
    domain: DomainStore,
    place: Place,
    this: SessionDomain,
    *,
    first: Session | None,
    reserve_bytes: int,
) -> tuple[Session, Place]:
    """Start the watcher of a running domain; return the session with it, and the place with what it has forwarded.

    ``first`` is open on the domain. Raises what session_watcher.start_linked raises.
    """
    order = Order.of(session.domain_uuid, this.naming, first)
    host = this.source.handle.host
    session, answer = session_watcher.start_linked(session, domain, host=host, order=order, reserve_bytes=reserve_bytes)
    _name(place.directory / session_server.SOCKET, answer.path)
    return session, replace(place, server=Path(answer.server))


def watch_off(
    session: Session, domain: DomainStore, place: Place, handle: DomainHandle, naming: Naming, *, stop: Stop
) -> tuple[Session, Place, KeptDaemon]:
    """Start the watcher of a domain that is off; return also the storage daemon there, which has no images yet.

    Whatever becomes of this process, the watcher ends it. Raises what session_watcher.start_linked raises.
    """
    order = Order(handle.uuid, naming.repository_id, daemon=session.id)
    session, answer = session_watcher.start_linked(session, domain, host=handle.host, order=order, reserve_bytes=0)
    _name(place.directory / session_server.SOCKET, answer.path)
    monitor = place.directory / session_daemon.MONITOR
    _name(monitor, answer.monitor)
    assert answer.daemon is not None
    kept = KeptDaemon(handle.host.link(check=stop.check), answer.daemon, monitor)
    return session, replace(place, server=Path(answer.server), makes_socket=True), kept


def _name(socket: Path, path: str) -> None:
    """Give a socket that is forwarded its usual name."""
    with storage_errors(f"make the socket {socket}"):
        socket.symlink_to(path)


def scratch(directory: Path, this: SessionDomain) -> RemoteScratch:
    """Return the scratch directory of a domain there; its images are prepared here."""
    handle = this.source.handle
    link = handle.host.link(check=this.stop.check)
    return RemoteScratch(link, handle.uuid, str(directory), here=throwaway.default_directory(), is_running=True)
