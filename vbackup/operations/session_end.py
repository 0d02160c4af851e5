"""Commit or abort a pull session: only ``commit`` moves the base of a tracker.

The commit is the rename that gives the tracker its new checkpoint. Whatever dies before it leaves the base as it was;
whoever comes after it finds the session committed, and ends what is left in QEMU. Both can be repeated.
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone

from vbackup.domain import source
from vbackup.domain.host import DomainHandle, Host
from vbackup.engine import leftovers, session_close
from vbackup.errors import Retry, SessionEndedError, VbackupError
from vbackup.operations import session_offline, session_recovery
from vbackup.operations.session_recovery import SessionQemu
from vbackup.report import Reporter
from vbackup.sessions.checkpoint import Checkpoint
from vbackup.sessions.record import KILLED, QEMU_ENDED, WATCHER_ENDED, Session, SessionState
from vbackup.sessions.store import DomainStore, Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

log = logging.getLogger(__name__)


def commit(session_id: str, *, host: Host, store: Store, reporter: Reporter, stop: Stop) -> Session:
    """Make the session's checkpoint the base of its tracker, end the session, and return it.

    A session that was committed is returned again. Raises UnknownSessionError, and SessionEndedError if it has ended
    otherwise, has expired, or QEMU serves it no more: the base is as it was.
    """
    uuid = store.session(session_id).domain_uuid
    with store.locked(uuid, stop=stop) as domain:
        session = store.session(session_id)
        handle = session_recovery.domain_of(host, session.domain_uuid)
        if session.state is SessionState.COMMITTED:
            return _closed(domain, session, handle, reporter)
        _refuse_ended(session)
        with session_recovery.qemu_of(session, handle) as qemu:
            refuse_over(domain, session, qemu, reporter)
            assert qemu is not None
            assert session.internals is not None
            assert session.internals.checkpoint is not None
            if session.internals.daemon is None:
                tracker = _advance(domain, session, session.internals.checkpoint)
                ended = session_recovery.end(domain, session, qemu, state=SessionState.COMMITTED, reporter=reporter)
            else:
                checkpoint = session_offline.checkpoint_of(domain, session, handle, qemu, reporter=reporter, stop=stop)
                tracker = _advance(domain, session, checkpoint)
                ended = session_recovery.end(domain, session, None, state=SessionState.COMMITTED, reporter=reporter)
        _remove_superseded(tracker, handle, reporter)
        return ended


def abort(session_id: str, *, host: Host, store: Store, reporter: Reporter, stop: Stop) -> Session:
    """End the session and return it; the base of its tracker is as it was.

    A session that has ended without a commit is returned again. Raises UnknownSessionError, and SessionEndedError if it
    was committed.
    """
    uuid = store.session(session_id).domain_uuid
    with store.locked(uuid, stop=stop) as domain:
        session = store.session(session_id)
        if session.state is SessionState.COMMITTED:
            raise SessionEndedError(session.id, session.state.value, "it cannot be aborted any more", retry=Retry.NEVER)
        if session.is_closed:
            return session
        handle = session_recovery.domain_of(host, session.domain_uuid)
        state = session.state if session.state.has_ended else SessionState.ABORTED
        with session_recovery.qemu_of(session, handle) as qemu:
            return session_recovery.end(
                domain, session, qemu, state=state, reason=session.end_reason, reporter=reporter
            )


def refuse_over(domain: DomainStore, session: Session, qemu: SessionQemu | None, reporter: Reporter) -> None:
    """End a session that has expired or is not served any more, and raise SessionEndedError."""
    if session.has_expired(datetime.now(timezone.utc)):
        session_recovery.end(domain, session, qemu, state=SessionState.EXPIRED, reporter=reporter)
        raise SessionEndedError(session.id, SessionState.EXPIRED.value)
    if qemu is None or not session_close.is_served(session, qemu.monitor, qemu.naming):
        reason = WATCHER_ENDED if session_recovery.is_abandoned(session) else QEMU_ENDED
        session_recovery.end(domain, session, qemu, state=SessionState.FAILED, reason=reason, reporter=reporter)
        raise SessionEndedError(session.id, SessionState.FAILED.value, reason)


def _refuse_ended(session: Session) -> None:
    if session.state is SessionState.BEGINNING:
        raise SessionEndedError(session.id, SessionState.FAILED.value, KILLED)
    if session.state.has_ended:
        raise SessionEndedError(session.id, session.state.value, session.end_reason)


def _advance(domain: DomainStore, session: Session, checkpoint: Checkpoint) -> Tracker:
    """Give the tracker its new checkpoint: this is the commit."""
    tracker = domain.tracker(session.tracker, domain_name=session.domain_name)
    return domain.write_tracker(tracker.with_committed(checkpoint))


def _closed(domain: DomainStore, session: Session, handle: DomainHandle | None, reporter: Reporter) -> Session:
    """End what is left of a session that is committed: vbackup may have died in between."""
    if session.is_closed:
        return session
    with session_recovery.qemu_of(session, handle) as qemu:
        return session_recovery.end(domain, session, qemu, state=SessionState.COMMITTED, reporter=reporter)


def _remove_superseded(tracker: Tracker, handle: DomainHandle | None, reporter: Reporter) -> None:
    """Remove the bitmaps of checkpoints that the tracker does not have any more. What stays only costs memory."""
    if handle is None:
        return
    try:
        if not handle.is_active():
            return  # the next session removes them
        with source.open_source(handle, reporter=reporter) as opened:
            naming = session_recovery.naming_of(tracker.name)
            nodes = opened.disk_nodes(opened.domain.disks)
            for name in leftovers.remove_uncommitted(opened.monitor, nodes, tracker.ids, naming, sizes=tracker.sizes):
                log.debug("removed bitmap %s", name)
    except VbackupError as err:
        log.debug("superseded bitmaps stay: %s", err)
