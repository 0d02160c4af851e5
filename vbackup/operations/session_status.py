"""Look at pull sessions, and give one more time."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

from vbackup.domain.host import Host
from vbackup.errors import Retry, SessionEndedError
from vbackup.operations import session_end, session_recovery
from vbackup.report import Reporter
from vbackup.sessions.record import WATCHER_ENDED, Session, SessionState
from vbackup.sessions.store import Store
from vbackup.stop import Stop


def status(session_id: str, *, host: Host, store: Store, reporter: Reporter, stop: Stop) -> Session:
    """Return a session as it is now; one that has expired, or is not served any more, is ended first.

    Raises UnknownSessionError.
    """
    session = store.session(session_id)
    if session.is_closed:
        return session
    with store.locked(session.domain_uuid, stop=stop) as domain:
        handle = session_recovery.domain_of(host, session.domain_uuid)
        session_recovery.settle(domain, handle, reporter=reporter)
        return store.session(session_id)


def status_elsewhere(session_id: str, *, store: Store, stop: Stop) -> Session:
    """Return a session of a domain on another host as it is now; that host is not asked.

    Its watcher, which has the SSH connection, has written down what became of it, unless it was killed itself. Raises
    UnknownSessionError.
    """
    with store.locked(store.session(session_id).domain_uuid, stop=stop) as domain:
        session = store.session(session_id)
        if not session_recovery.is_abandoned(session):
            return _now(session, datetime.now(timezone.utc))
        ended = datetime.now(timezone.utc)
        return domain.write(replace(session, state=SessionState.FAILED, ended=ended, end_reason=WATCHER_ENDED))


def sessions(*, store: Store, now: datetime) -> list[Session]:
    """Return the sessions of all domains as they were written down, the oldest first; QEMU is not asked.

    One whose time is up is expired, whether or not somebody has ended it yet.
    """
    found = [session for uuid in store.uuids() for session in store.sessions(uuid)]
    return [_now(session, now) for session in sorted(found, key=lambda one: one.started)]


def renew(session_id: str, ttl_s: float, *, host: Host, store: Store, reporter: Reporter, stop: Stop) -> Session:
    """Let a session expire ``ttl_s`` seconds from now, and return it.

    Raises UnknownSessionError, and SessionEndedError if it has ended, has expired, or is not served any more.
    """
    uuid = store.session(session_id).domain_uuid
    with store.locked(uuid, stop=stop) as domain:
        session = store.session(session_id)
        if session.state is not SessionState.OPEN:
            retry = Retry.NEVER if session.state is SessionState.COMMITTED else Retry.BEGIN
            raise SessionEndedError(session.id, session.state.value, session.end_reason, retry=retry)
        with session_recovery.qemu_of(session, session_recovery.domain_of(host, session.domain_uuid)) as qemu:
            session_end.refuse_over(domain, session, qemu, reporter)
        return domain.write(replace(session, expires=datetime.now(timezone.utc) + timedelta(seconds=ttl_s)))


def _now(session: Session, now: datetime) -> Session:
    if session.state is SessionState.OPEN and session.has_expired(now):
        return replace(session, state=SessionState.EXPIRED)
    return session
