"""Pull sessions: a moment of a domain's disks, served to a program that copies them itself. No repository is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.api.connected import Connected, listed

if TYPE_CHECKING:
    from vbackup.domain.host import Host
    from vbackup.operations.serve_session import ServeSessionRequest, Serving
    from vbackup.operations.session_begin import SessionRequest
    from vbackup.operations.session_changes import Changes, ChangesRequest
    from vbackup.report import Reporter
    from vbackup.sessions.record import Session, SessionState
    from vbackup.sessions.store import Store
    from vbackup.sessions.trackers import Tracker
    from vbackup.stop import Stop


class Sessions(Connected):
    """Calls for sessions, for the trackers that begin them, and for the checkpoints from which they start."""

    def begin_session(
        self, request: SessionRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> Session:
        """Begin a session: its disks are served as they are now, until it is committed, aborted, or expires.

        Each disk of the answer has its ``uri``. The session outlives this process. Raises SessionAliveError if another
        session of the tracker is open, UnknownCheckpointError, BaseError if the level needs a base (ask for a full),
        BusyError if others use QEMU's NBD server, and what ``backup`` raises up to its moment. Nothing of the session
        is left then.
        """
        from vbackup.operations import session_begin
        from vbackup.sessions import sockets

        with self._host() as host:
            return session_begin.begin(
                request,
                host=host,
                store=_store(),
                socket_directory=sockets.default_directory(),
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def session(self, session_id: str, *, reporter: Reporter | None = None, stop: Stop | None = None) -> Session:
        """Return a session as it is now; one that has expired, or is not served any more, is ended first.

        Raises UnknownSessionError, StorageError, HostUnreachableError.
        """
        from vbackup.operations import session_recovery, session_status

        store = _known(session_id)
        if session_recovery.is_elsewhere(store.session(session_id)):
            return session_status.status_elsewhere(session_id, store=store, stop=self._stop(stop))
        with self._host_of(store.session(session_id)) as host:
            return session_status.status(
                session_id, host=host, store=store, reporter=self._reporter(reporter), stop=self._stop(stop)
            )

    def sessions(self, domain: str | None = None) -> list[Session]:
        """Return the sessions of all domains, or of the one with this name or UUID, the oldest first.

        They are as they were written down; libvirt is not asked, but one whose time is up is expired. Raises
        StorageError.
        """
        from datetime import datetime, timezone

        from vbackup.operations import session_status

        found = session_status.sessions(store=_store(), now=datetime.now(timezone.utc))
        return [one for one in found if domain in (None, one.domain_name, one.domain_uuid)]

    def renew_session(
        self, session_id: str, ttl_s: float, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> Session:
        """Let a session expire ``ttl_s`` seconds from now, and return it.

        Raises UnknownSessionError, and SessionEndedError if it has ended, has expired, or is not served any more.
        """
        from vbackup.operations import session_status

        store = _known(session_id)
        with self._host_of(store.session(session_id)) as host:
            return session_status.renew(
                session_id, ttl_s, host=host, store=store, reporter=self._reporter(reporter), stop=self._stop(stop)
            )

    def commit_session(self, session_id: str, *, reporter: Reporter | None = None, stop: Stop | None = None) -> Session:
        """Make the session's checkpoint the base of its tracker, end the session, and return it.

        Call it when all that was read is safe: the next session starts from there. One that was committed already is
        returned again. Raises UnknownSessionError, and SessionEndedError if it has ended otherwise, has expired, or is
        not served any more; the base is as it was then.
        """
        from vbackup.operations import session_end

        store = _known(session_id)
        with self._host_of(store.session(session_id)) as host:
            return session_end.commit(
                session_id, host=host, store=store, reporter=self._reporter(reporter), stop=self._stop(stop)
            )

    def abort_session(self, session_id: str, *, reporter: Reporter | None = None, stop: Stop | None = None) -> Session:
        """End the session and return it; the base of its tracker is as it was.

        One that has ended without a commit is returned again. Raises UnknownSessionError, and SessionEndedError if it
        was committed.
        """
        from vbackup.operations import session_end

        store = _known(session_id)
        with self._host_of(store.session(session_id)) as host:
            return session_end.abort(
                session_id, host=host, store=store, reporter=self._reporter(reporter), stop=self._stop(stop)
            )

    def session_changes(self, request: ChangesRequest) -> Changes:
        """Return a page of the extents of a disk that the client of a session has to read; libvirt is not asked.

        ``Changes.next_offset_bytes`` is where the next page begins. Raises UnknownSessionError, SessionEndedError,
        DiskError (the session does not have the disk), UsageError (the disk does not have the range),
        UnknownCheckpointError, StorageError (the server of the disks cannot be reached).
        """
        from vbackup.operations import session_changes

        return session_changes.run(request, store=_store())

    def serve_session(
        self, request: ServeSessionRequest, on_ready: Callable[[Serving], None], *, stop: Stop | None = None
    ) -> SessionState | None:
        """Serve the disks of a session over HTTPS until it is committed, and return its state then; None for ``stop``.

        ``on_ready`` is called when clients can connect. Raises MissingPackageError (install vbackup with its extra
        "http"), StorageError for a token or certificates that cannot be used, BusyError or UsageError if nobody can
        listen there, UnknownSessionError, and SessionEndedError if the session ends without a commit.
        """
        from vbackup.operations import serve_session

        return serve_session.run(request, store=_store(), stop=self._stop(stop), on_ready=on_ready)

    @contextmanager
    def _host_of(self, session: Session) -> Iterator[Host]:
        """Yield a connection to the host that a session was begun at, which can be another than the one of the calls.

        Raises HostUnreachableError.
        """
        from vbackup.domain.host import Host
        from vbackup.operations import session_recovery

        begun_at = session.internals.connection if session.internals is not None else None
        if begun_at is None or begun_at == self.uri or not session_recovery.is_elsewhere(session, than=self.uri):
            with self._host() as host:
                yield host
        else:
            with Host(begun_at) as host:
                yield host

    def trackers(self, domain: str | None = None, *, reporter: Reporter | None = None) -> list[Tracker]:
        """Return the trackers of all domains, or of the one with this name or UUID; libvirt is not asked.

        ``reporter`` gets a warning for each that is damaged, and says what to do; ``tracker`` raises StorageError for
        it. Raises StorageError if the state cannot be read.
        """
        from vbackup.operations import tracker

        uuid = domain if domain is not None and names.UUID.fullmatch(domain) else None
        found = tracker.trackers(store=_store(), uuid=uuid, reporter=self._reporter(reporter))
        return found if uuid is not None else [one for one in found if domain in (None, one.domain_name)]

    def tracker(self, domain: str, name: str) -> Tracker:
        """Return a tracker of a domain of the host. Raises DomainNotFoundError, UnknownTrackerError, StorageError."""
        store = _store()
        with self._host() as host:
            handle = host.domain(domain)
            return store.tracker(handle.uuid, name, domain_name=handle.name)

    def forget_tracker(
        self,
        domain: str,
        name: str,
        *,
        exclusive: bool = False,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Tracker:
        """Remove a tracker, and its bitmaps from the domain's disks; return it as it was. Its next session is full.

        The domain can be gone. ``exclusive``: no other host uses the images of a domain that is off. Raises
        DomainNotFoundError if the trackers do not know the domain either, UsageError if several domains that are gone
        had the name, UnknownTrackerError, SessionAliveError if a session of it is open, and what ``attach`` raises.
        """
        from vbackup.operations import tracker

        with self._host() as host:
            return tracker.forget(
                domain,
                name,
                host=host,
                store=_store(),
                exclusive=exclusive,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def delete_checkpoints(
        self,
        domain: str,
        tracker: str,
        ids: Sequence[str],
        *,
        exclusive: bool = False,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Tracker:
        """Delete checkpoints of a tracker, and their bitmaps; return the tracker as it is then.

        Without its newest one, the next session starts from the one before, unless the client names another.
        ``exclusive``: no other host uses the images of a domain that is off. Raises DomainNotFoundError,
        UnknownTrackerError, UnknownCheckpointError before anything is deleted, SessionAliveError if a session of it is
        open, and what ``attach`` raises.
        """
        from vbackup.operations import checkpoint

        with self._host() as host:
            return checkpoint.delete(
                domain,
                tracker,
                listed(ids),
                host=host,
                store=_store(),
                exclusive=exclusive,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )


def _known(session_id: str) -> Store:
    """Return the store, which has this session: an id that is wrong needs no libvirt. Raises UnknownSessionError."""
    store = _store()
    store.session(session_id)
    return store


def _store() -> Store:
    from vbackup.sessions import store

    return store.Store(store.default_directory())
