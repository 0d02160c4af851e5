"""The watcher process: wait until the session has to end, end it, and end.

vbackup.operations.session_watcher starts it. What it has done is in the session's record, and in the system log.
"""

from __future__ import annotations

import os
import signal
import syslog
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup.engine.fleecing_area import LocalArea
from vbackup.errors import StorageError, UnknownSessionError, VbackupError
from vbackup.report import Silent
from vbackup.sessions import sockets
from vbackup.sessions.record import KILLED, LINK_LOST, QEMU_ENDED, Session, SessionState
from vbackup.sessions.store import Store
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.operations.session_watcher.linked import Forwarded

#: Time between two looks at the record and the free space.
TICK_S = 1.0
#: Time between two attempts to end a session: libvirt may be away, or busy with the domain.
AGAIN_S = 10.0
#: How long whoever has ended a session may take to close what QEMU has of it.
CLOSING_TIME = timedelta(seconds=60)
FULL = "the scratch directory was nearly full"


@dataclass(frozen=True)
class Due:
    """That a session has to end."""

    state: SessionState
    reason: str | None = None


def main(
    *, session_id: str, directory: str, uri: str, reserve_bytes: int, link: Mapping[str, Any] | None = None
) -> None:
    """Watch a session; the parameters are the orders (see vbackup.operations.session_watcher.start)."""
    for signum in (signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    os.chdir("/")
    store = Store(Path(directory))
    pause = threading.Event()
    if link is None:
        until_closed(
            lambda: watch(session_id, store, reserve_bytes=reserve_bytes, wait=pause.wait),
            lambda: _end(session_id, reserve_bytes, store=store, uri=uri),
            wait=pause.wait,
        )
        return
    from vbackup.operations.session_watcher import linked  # most sessions are on this host

    try:
        with linked.opened(uri, linked.Order(**link)) as there:
            linked.say(there.answer())
            until_closed(
                lambda: watch(session_id, store, reserve_bytes=reserve_bytes, wait=pause.wait, there=there),
                lambda: _end(session_id, reserve_bytes, store=store, uri=uri, there=there),
                wait=pause.wait,
            )
            if _is_closed(session_id, store):
                there.release()
    except VbackupError as err:
        linked.say(linked.Answer.of(err))


def _is_closed(session_id: str, store: Store) -> bool:
    try:
        return store.session(session_id).is_closed
    except (UnknownSessionError, StorageError):
        return False


def until_closed(watch_: Callable[[], Due | None], end: Callable[[], bool], *, wait: Callable[[float], object]) -> None:
    """End a session whenever it has to, with a pause where it cannot be ended, or not completely: return False."""
    due = watch_()
    while due is not None:
        try:
            is_closed = end()
        except VbackupError as err:
            _log(f"a session is {due.state.value}, but cannot be ended yet: {err}")
            is_closed = False
        if not is_closed:
            wait(AGAIN_S)
        due = watch_()


def watch(
    session_id: str,
    store: Store,
    *,
    reserve_bytes: int,
    wait: Callable[[float], object],
    there: Forwarded | None = None,
) -> Due | None:
    """Wait until a session has to end; return why, None if it has ended without us. ``wait`` waits some seconds.

    ``there``: the connection to the host of the session, if it is another one.
    """
    while True:
        try:
            session = store.session(session_id)
        except UnknownSessionError:
            return None
        except StorageError:
            wait(TICK_S)
            continue
        if session.is_closed:
            return None
        due = due_of(session, reserve_bytes, there)
        if due is not None:
            return due
        wait(TICK_S)


def due_of(session: Session, reserve_bytes: int, there: Forwarded | None = None) -> Due | None:
    """Return why a session has to end now, None if it has not.

    One that somebody else has ended, but not closed, has to end too: its commit may have been killed in between.
    """
    now = datetime.now(timezone.utc)
    if session.ended is not None:
        return Due(session.state, session.end_reason) if now - session.ended >= CLOSING_TIME else None
    if session.state is SessionState.BEGINNING:
        is_dead = session.internals is not None and not session.internals.writer.lives
        return Due(SessionState.FAILED, KILLED) if is_dead else None
    if there is not None and there.is_lost:
        return Due(SessionState.FAILED, LINK_LOST)
    if session.has_expired(now):
        return Due(SessionState.EXPIRED)
    if not (_has_server(session) if there is None else there.has_server()):
        return Due(SessionState.FAILED, QEMU_ENDED)
    return Due(SessionState.FAILED, FULL) if _is_full(session, reserve_bytes, there) else None


def _has_server(session: Session) -> bool:
    """Return True as long as its storage daemon lives, or QEMU has the socket open that it serves the session at.

    The socket was opened by vbackup and given to QEMU, so the kernel shows it to us, whatever QEMU's namespaces are.
    """
    internals = session.internals
    if internals is None:
        return True
    if internals.daemon is not None:
        return internals.daemon.lives
    if session.listen is not None:
        return sockets.is_open_at(session.listen)
    return internals.server is None or sockets.is_open(Path(internals.server))


def _is_full(session: Session, reserve_bytes: int, there: Forwarded | None) -> bool:
    """Return True if the scratch directory is nearly full; a domain that is off has none.

    One that cannot be asked is not: QEMU goes on, and a cluster that was not saved is an error for the client.
    """
    if session.internals is None or session.internals.daemon is not None:
        return False
    if there is not None:
        return there.is_full(session.internals.scratch, reserve_bytes)
    try:
        return LocalArea(Path(session.internals.scratch)).free_bytes() < reserve_bytes
    except StorageError:
        return False


def _end(session_id: str, reserve_bytes: int, *, store: Store, uri: str, there: Forwarded | None = None) -> bool:
    """End a session unless somebody else has, or has given it more time; return False if something is left of it.

    Raises VbackupError.
    """
    if there is not None and there.is_lost:
        _write_down_loss(session_id, store)
    # Imported here: waiting does without libvirt.
    from vbackup.domain.host import Host
    from vbackup.operations import session_recovery

    uuid = store.session(session_id).domain_uuid
    with Host(uri) as host, store.locked(uuid, stop=Stop()) as domain:
        session = store.session(session_id)
        had_ended = session.state.has_ended
        due = None if session.is_closed else due_of(session, reserve_bytes, there)
        if due is None and had_ended and there is not None and there.is_lost and not session.is_closed:
            due = Due(session.state, session.end_reason)  # nobody else does it: its lock is ours
        if due is None:
            return True
        if there is not None:
            there.end_daemon()
        with session_recovery.qemu_of(session, session_recovery.domain_of(host, session.domain_uuid)) as qemu:
            session = session_recovery.end(domain, session, qemu, state=due.state, reason=due.reason, reporter=Silent())
    if not had_ended:
        _log(f"session {session_id} ended: {due.state.value}" + (f", {due.reason}" if due.reason else ""))
    return session.is_closed


def _write_down_loss(session_id: str, store: Store) -> None:
    """Write down that a session has failed whose connection is lost, before its host is reached again, if ever."""
    with store.locked(store.session(session_id).domain_uuid, stop=Stop()) as domain:
        session = store.session(session_id)
        if session.state is SessionState.OPEN:
            ended = datetime.now(timezone.utc)
            domain.write(replace(session, state=SessionState.FAILED, ended=ended, end_reason=LINK_LOST))
            _log(f"session {session_id} ended: {SessionState.FAILED.value}, {LINK_LOST}")


def _log(message: str) -> None:
    """Write to the system log: nobody reads this process's output."""
    syslog.openlog("vbackup", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, message)
