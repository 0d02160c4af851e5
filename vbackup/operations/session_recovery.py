"""What has become of the sessions of a domain: who comes next ends those that are over.

vbackup need not run while a session is open, so nobody may be there when one expires, when QEMU ends, or when a vbackup
dies that begins or ends one. The lock of the domain's sessions is held, so a session that is being begun is dead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.domain import linked
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.passthrough import Passthrough
from vbackup.engine import session_close
from vbackup.errors import (
    ConnectionLostError,
    DomainNotFoundError,
    HostUnreachableError,
    InterruptedBySignalError,
    SessionAliveError,
    VbackupError,
)
from vbackup.names import Naming
from vbackup.operations import session_daemon
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter, Silent
from vbackup.sessions import store
from vbackup.sessions.checkpoint import iso
from vbackup.sessions.record import KILLED, QEMU_ENDED, WATCHER_ENDED, Session, SessionState
from vbackup.sessions.store import DomainStore, Store
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.remote.link import Link

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionQemu:
    """The QEMU that serves a session, or would."""

    monitor: Monitor
    naming: Naming  #: of the tracker
    states: Callable[[str], Collection[str]] | None = None  #: of a domain on another host (session_server.Place)
    link: Callable[[], Link] | None = None  #: returns the link to that host


@contextmanager
def qemu_of(session: Session, handle: DomainHandle | None) -> Iterator[SessionQemu | None]:
    """Yield the QEMU of a session: the domain's, or a storage daemon; None if there is none any more.

    ``handle``: None if libvirt does not have the domain. Raises what opening a monitor raises.
    """
    naming = naming_of(session.tracker)
    daemon = session.internals.daemon if session.internals is not None else None
    if daemon is not None:
        if not _is_linked(session) and not daemon.lives:
            yield None
            return
        with session_daemon.monitor(session) as monitor:
            if monitor is None:
                yield None
                return
            with _own(session, handle) as own:
                link = own.host.link if own is not None and own.host.has_link else None
                yield SessionQemu(monitor, naming, link=link)
        return
    with _own(session, handle) as own:
        if own is None or not own.is_active():
            yield None
            return
        with Passthrough(own) as monitor:
            yield SessionQemu(monitor, naming, states_at(own.host))


def states_at(host: Host) -> Callable[[str], Collection[str]] | None:
    """Return what tells the states of sockets on another host (session_server.Place), None for this one."""
    if not host.has_link:
        return None
    return lambda path: host.link().socket_states(path)


@contextmanager
def _own(session: Session, handle: DomainHandle | None) -> Iterator[DomainHandle | None]:
    """Yield the domain at the host that the session was begun at, None if it is not there any more.

    Its UUID can be that of another domain elsewhere. Raises HostUnreachableError.
    """
    uri = session.internals.connection if session.internals is not None else None
    if uri is None or is_at(session, None if handle is None else handle.host):
        yield handle
        return
    with Host(uri) as host:
        yield domain_of(host, session.domain_uuid)


def is_at(session: Session, host: Host | None) -> bool:
    """Return True if this is the host that a session was begun at; None: one of this host."""
    if not _is_linked(session):
        return host is None or host.is_local
    assert session.internals is not None
    return host is not None and host.real_uri == session.internals.connection


def is_elsewhere(session: Session, *, than: str | None = None) -> bool:
    """Return True for a session on another host than the one with this URI, as far as both are reached by SSH.

    None is the default, which is not one by SSH.
    """
    if not _is_linked(session):
        return than is not None and linked.has_address(than)
    assert session.internals is not None
    return than != session.internals.connection


def _is_linked(session: Session) -> bool:
    return session.internals is not None and session.internals.is_linked


def is_abandoned(session: Session) -> bool:
    """Return True for an open session on another host whose watcher has ended, and with it the SSH connection."""
    internals = session.internals
    is_open = session.state is SessionState.OPEN and internals is not None and internals.is_linked
    return is_open and internals is not None and (internals.watcher is None or not internals.watcher.lives)


def domain_of(host: Host, uuid: str) -> DomainHandle | None:
    """Return a domain, None if libvirt does not have it any more."""
    try:
        return host.domain(uuid)
    except DomainNotFoundError:
        return None


def naming_of(tracker: str) -> Naming:
    """Return the names of what a tracker has in QEMU."""
    return Naming(names.tracker_id(tracker), names.place_of(_place()))


def _place() -> str:
    """Return what distinguishes this host's trackers from those of the same name on others."""
    from vbackup import machine

    host = machine.this_host()
    return f"{host.machine_id or host.name}"


def settle(
    domain: DomainStore, handle: DomainHandle | None, *, reporter: Reporter, only_expired: bool = False
) -> list[Session]:
    """End the sessions of a domain that are over, and return those that are open.

    ``only_expired``: leave alone what is not open. A QEMU that cannot be asked leaves a session as it is.
    """
    alive = []
    for session in domain.sessions():
        if session.is_closed or (only_expired and session.state is not SessionState.OPEN):
            continue
        now = datetime.now(timezone.utc)
        try:
            with qemu_of(session, handle) as qemu:
                state, reason = _verdict(session, qemu, now)
                if state is SessionState.OPEN:
                    alive.append(session)
                    continue
                end(domain, session, qemu, state=state, reason=reason, reporter=reporter)
        except (ConnectionLostError, HostUnreachableError) as err:
            log.debug("session %s: %s", session.id, err)
            if not session.state.has_ended:
                alive.append(session)
    if not only_expired:
        session_daemon.end_orphans(domain, [session.id for session in alive])
    return alive


def refuse_alive(
    domain: DomainStore, handle: DomainHandle | None, tracker: str, *, reporter: Reporter
) -> list[Session]:
    """End the sessions of a domain that are over; return those of other trackers that are open.

    Raises SessionAliveError if one of this tracker is.
    """
    alive = settle(domain, handle, reporter=reporter)
    for session in alive:
        if session.tracker == tracker:
            raise SessionAliveError(session.id, tracker, iso(session.expires))
    return alive


def _verdict(session: Session, qemu: SessionQemu | None, now: datetime) -> tuple[SessionState, str | None]:
    """Return the state that a session has, or gets."""
    if session.state.has_ended:
        return session.state, session.end_reason
    if session.state is SessionState.BEGINNING:
        return SessionState.FAILED, KILLED
    if session.has_expired(now):
        return SessionState.EXPIRED, None
    if is_abandoned(session):
        return SessionState.FAILED, WATCHER_ENDED
    if qemu is None or not session_close.is_served(session, qemu.monitor, qemu.naming):
        return SessionState.FAILED, QEMU_ENDED
    return SessionState.OPEN, None


def end(
    domain: DomainStore,
    session: Session,
    qemu: SessionQemu | None,
    *,
    state: SessionState,
    reason: str | None = None,
    reporter: Reporter,
) -> Session:
    """Write down that a session has ended, then end what is left of it, and return it.

    What cannot be ended now is when somebody comes next. If the tracker has another session by then, all that bears its
    id in QEMU is that one's. Raises StorageError if it cannot be written down.
    """
    if session.state is SessionState.BEGINNING:  # its record may not have the daemon's pid yet
        session_daemon.end_orphans(domain, [one.id for one in domain.sessions() if one.state is SessionState.OPEN])
    ended = session.ended or datetime.now(timezone.utc)
    session = domain.write(replace(session, state=state, ended=ended, end_reason=reason))
    is_complete = True
    if qemu is not None:
        if session.internals is not None and session.internals.daemon is not None:
            is_complete = session_daemon.end(session, qemu.monitor, reporter, link=qemu.link)
        elif not _has_successor(domain, session):
            is_complete = session_close.in_qemu(
                session,
                qemu.monitor,
                qemu.naming,
                keeps_checkpoint=state is SessionState.COMMITTED,
                reporter=reporter,
                states=qemu.states,
            )
    if is_complete:
        try:
            session_close.on_host(session)
        except VbackupError as err:
            reporter.warning(str(err))
            is_complete = False
    assert session.internals is not None
    return domain.write(replace(session, internals=replace(session.internals, is_closed=is_complete)))


def _has_successor(domain: DomainStore, session: Session) -> bool:
    return any(
        one.tracker == session.tracker and one.id != session.id and one.state is SessionState.OPEN
        for one in domain.sessions()
    )


def forget_old(known: Store, host: Host, *, now: datetime, stop: Stop) -> None:
    """Remove what nobody asks for any more, of all domains: those that are gone have no next session that does it.

    Records of sessions that ended long ago are removed, and so are directories without records and trackers. A session
    that was never ended is ended first. What is busy or cannot be read is left for the next time.
    """
    for uuid in known.uuids():
        try:
            if not known.has_old(uuid, now):
                continue
            if any(not one.is_closed and not is_at(one, host) for one in known.sessions(uuid)):
                continue
            with known.locked(uuid, stop=stop, limit_s=0.0) as domain:
                settle(domain, domain_of(host, uuid), reporter=Silent())
                domain.forget_old(now)
                domain.remove_if_empty()
        except InterruptedBySignalError:
            raise
        except VbackupError as err:
            log.debug("old sessions of domain %s stay: %s", uuid, err)


def end_expired(handle: DomainHandle, *, reporter: Reporter, directory: Path | None = None) -> None:
    """End the expired sessions of a domain that is about to be backed up; what is in the way is left alone."""
    known = Store(directory or store.default_directory())
    try:
        if not any(one.has_expired(datetime.now(timezone.utc)) for one in _open(known, handle.uuid)):
            return
        with known.locked(handle.uuid, stop=Stop(), name=handle.name) as domain:
            settle(domain, handle, reporter=Silent(), only_expired=True)
    except (VbackupError, OSError) as err:
        reporter.step(f"An expired pull session of domain {handle.name} could not be ended: {err}")


def _open(known: Store, uuid: str) -> list[Session]:
    return [one for one in known.sessions(uuid) if one.state is SessionState.OPEN]
