"""Begin a pull session: one moment of all disks of a domain, which its QEMU then serves by NBD.

Nothing of it counts before ``commit`` (vbackup.operations.session_end), and vbackup need not run meanwhile. QEMU
serves, and a watcher (vbackup.operations.session_watcher) ends the session when it expires, or if this process dies
while it begins it. Each step registers its undo first, and the record says from the beginning what there may be, so
that a vbackup that is killed costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.freeze import DEFAULT_LIMIT_S
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.source import Source
from vbackup.engine import (
    leftovers,
    plan,
    scratch,
    session_close,
    session_lock,
    session_plan,
    session_scratch,
    session_server,
    session_survey,
)
from vbackup.engine.base import Reason
from vbackup.engine.fleecing import SpaceWatch
from vbackup.engine.fleecing_area import REMOTE_DIRECTORY, Area, LocalArea, RemoteArea
from vbackup.engine.session_plan import SessionPlan
from vbackup.engine.session_server import Place
from vbackup.engine.session_survey import SessionDomain, Wanted
from vbackup.errors import BusyError, ForwardingError, QmpError
from vbackup.images import throwaway
from vbackup.model import Level, Quiesce
from vbackup.operations import session_daemon, session_elsewhere, session_recovery, session_watcher
from vbackup.process import Process
from vbackup.qemu import jobs
from vbackup.qemu.monitor import block_nodes
from vbackup.qemu.storage_daemon import Survival
from vbackup.qemu.transaction import send
from vbackup.report import Reporter
from vbackup.sessions import sockets
from vbackup.sessions.record import Internals, Note, Session, SessionDisk, SessionState
from vbackup.sessions.store import DomainStore, Store
from vbackup.stop import Stop
from vbackup.undo import Undo

if TYPE_CHECKING:
    from vbackup.domain.offline import OffSource
    from vbackup.remote.daemon import KeptDaemon

DEFAULT_TTL_S = 2 * 3600.0


@dataclass(frozen=True)
class SessionRequest:
    """The options of ``vbackup session begin``."""

    domain: str  #: name or UUID
    tracker: str
    #: directory of the domain's host for what the guest overwrites; None: TMPDIR, or /var/tmp, which it is elsewhere
    scratch: Path | None = None
    level: Level = Level.AUTO
    base: str | None = None  #: the checkpoint to start from; None: the newest, or the last full for a differential
    disks: tuple[str, ...] = ()  #: only these, if any
    excluded_disks: tuple[str, ...] = ()
    quiesce: Quiesce = Quiesce.AUTO
    freeze_limit_s: int = DEFAULT_LIMIT_S
    ttl_s: float = DEFAULT_TTL_S
    listen: str | None = None  #: HOST:PORT; None: a unix socket
    tls: Path | None = None  #: directory of the certificates, which HOST:PORT needs
    exclusive: bool = False  #: no other host uses the images of the domain while it is off


def begin(
    request: SessionRequest, *, host: Host, store: Store, socket_directory: Path, reporter: Reporter, stop: Stop
) -> Session:
    """Begin a session and return it.

    Raises UnsuitableError if libvirt is on another host that SSH does not reach, SessionAliveError if another session
    of the tracker is open, UnknownCheckpointError, BaseError if the level needs a base, BusyError if QEMU's NBD server
    is used by others, and what a backup raises up to its moment. Nothing of the session is left then.
    """
    handle = host.domain(request.domain)
    stop.check()
    if not host.is_local:
        session_elsewhere.refuse(handle, listen=request.listen)
    request = replace(request, scratch=request.scratch or _default_scratch(host))
    space = SpaceWatch.over(_area(request, handle, stop))
    session_recovery.forget_old(store, host, now=datetime.now(timezone.utc), stop=stop)
    with store.locked(handle.uuid, stop=stop, name=handle.name) as domain:
        alive = session_recovery.refuse_alive(domain, handle, request.tracker, reporter=reporter)
        alive = [one for one in alive if session_recovery.is_at(one, host)]
        _refuse_other_server(request, alive)
        domain.forget_old(datetime.now(timezone.utc))
        return _begin(
            request,
            handle,
            domain,
            alive,
            socket_directory=socket_directory,
            reserve_bytes=space.reserve_bytes,
            reporter=reporter,
            stop=stop,
        )


def _default_scratch(host: Host) -> Path:
    return throwaway.default_directory() if host.is_local else REMOTE_DIRECTORY


def _area(request: SessionRequest, handle: DomainHandle, stop: Stop) -> Area:
    """Return where the overlays are."""
    assert request.scratch is not None
    if handle.host.is_local:
        return LocalArea(request.scratch)
    return RemoteArea(handle.host.link(check=stop.check), handle.uuid, os.fspath(request.scratch))


def _refuse_other_server(request: SessionRequest, alive: Sequence[Session]) -> None:
    """Raise BusyError if the open sessions of the domain are served where this one cannot be."""
    for session in alive:
        if session.listen is not None or request.listen is not None:
            at = session.listen or "a unix socket"
            raise BusyError(
                f"Session {session.id} of tracker {session.tracker} is served at {at}, and QEMU has only one NBD"
                " server: sessions of one domain are open at the same time only on unix sockets."
            )


def _begin(
    request: SessionRequest,
    handle: DomainHandle,
    domain: DomainStore,
    alive: Sequence[Session],
    *,
    socket_directory: Path,
    reserve_bytes: int,
    reporter: Reporter,
    stop: Stop,
) -> Session:
    now = datetime.now(timezone.utc)
    session_id = names.new_session_id(now)
    directory = sockets.path_of(socket_directory, session_id)
    first = next((one for one in alive if one.socket is not None and not _has_daemon(one)), None)
    place = Place(
        directory, request.listen, request.tls, server=_bound(first), states=session_recovery.states_at(handle.host)
    )
    undo_in_qemu = Undo(reporter, tries_again=session_close.TRIES_AGAIN)
    with Undo(reporter, tries_again=session_close.TRIES_AGAIN) as undo:
        undo.push("forget the session", lambda: _forget(domain, session_id, place, is_clean=undo_in_qemu.is_complete))
        session = domain.write(_draft(request, session_id, place, handle, now=now))
        undo.push("remove the sockets", lambda: _remove_sockets(place))
        sockets.make_directory(directory)
        naming = session_recovery.naming_of(request.tracker)
        daemon: Survival | KeptDaemon | None = None
        if not handle.is_active():
            if handle.host.is_local:
                daemon = session_daemon.survival(domain, session_id, directory)
            else:
                session, place, daemon = session_elsewhere.watch_off(session, domain, place, handle, naming, stop=stop)
        with _opened(request, handle, daemon, reporter=reporter, stop=stop) as (opened, off):
            this = SessionDomain(opened, naming, reporter, stop)
            tracker = domain.tracker(request.tracker, domain_name=handle.name)
            opened.prepare_freeze(request.quiesce, limit_s=request.freeze_limit_s)
            taken = frozenset(one.checkpoint for one in domain.sessions() if one.tracker == request.tracker)
            wanted = Wanted(session_id, request.level, request.base, request.disks, request.excluded_disks, now, taken)
            made = session_survey.plan_of(wanted, tracker, this)
            session = domain.write(_planned(request, session, made, place))
            # Before QEMU has anything: whatever becomes of this process, somebody is there to end it.
            if handle.host.is_local:
                session = session_watcher.start(
                    session, domain, host=handle.host, reserve_bytes=reserve_bytes, reporter=reporter
                )
            elif off is None:
                session, place = session_elsewhere.watch_running(
                    session, domain, place, this, first=first, reserve_bytes=reserve_bytes
                )
            if off is not None:
                session = _with_daemon(session, off)
            with undo_in_qemu:
                session = _serve(request, made, session, this, place=place, first=first, undo=undo_in_qemu)
                session = domain.write(session)
                undo_in_qemu.release()
            undo.release()
            if off is not None:
                off.leave(session.id)
    return session


def _has_daemon(session: Session) -> bool:
    return session.internals is not None and session.internals.daemon is not None


def _bound(first: Session | None) -> Path | None:
    """Return where the server that a session uses was bound, None without one."""
    if first is None or first.internals is None or first.internals.server is None:
        return None
    return Path(first.internals.server)


@contextmanager
def _opened(
    request: SessionRequest,
    handle: DomainHandle,
    daemon: Survival | KeptDaemon | None,
    *,
    reporter: Reporter,
    stop: Stop,
) -> Iterator[tuple[Source, OffSource | None]]:
    """Open the domain's disks: in its QEMU, or only for reading in a storage daemon that lives as long as the session.

    ``daemon``: how it survives on this host, or that of another host; None if the domain runs. The second value is the
    first one if it is off.
    """
    access = Access(request.exclusive, only_reads=True, check=stop.check)
    if daemon is None:
        with source.open_source(handle, reporter=reporter, access=access) as running:
            if not running.is_running:  # its daemon would end with this block
                raise BusyError(f"Domain {handle.name} has just been shut off; run the same command again.")
            selection = plan.select(running.domain, request.disks, request.excluded_disks)
            session_scratch.refuse_unable(running.monitor, selection.disks)
            yield running, None
        return
    from vbackup.domain import offline  # a running domain does without a storage daemon

    survival, there = (daemon, None) if isinstance(daemon, Survival) else (None, daemon)
    with offline.open_off(handle, reporter=reporter, access=access, survival=survival, elsewhere=there) as off:
        yield off, off


def _draft(request: SessionRequest, session_id: str, place: Place, handle: DomainHandle, *, now: datetime) -> Session:
    """Return the session as it is written down before there is anything of it."""
    assert request.scratch is not None
    return Session(
        id=session_id,
        tracker=request.tracker,
        domain_name=handle.name,
        domain_uuid=handle.uuid,
        state=SessionState.BEGINNING,
        level=request.level,
        base_asked=request.base,
        checkpoint="",
        base_checkpoint=None,
        started=now,
        expires=now + timedelta(seconds=request.ttl_s),
        socket=None if place.socket is None else str(place.socket),
        listen=place.listen,
        tls=None if place.tls is None else str(place.tls.absolute()),
        internals=Internals(
            writer=Process.this(),
            scratch=str(request.scratch if handle.host.has_link else request.scratch.absolute()),
            sockets=str(place.directory),
            server=None if place.socket is None or place.states else str(place.server or place.socket),
            connection=handle.host.real_uri,
            exclusive=request.exclusive,
        ),
    )


def _planned(request: SessionRequest, session: Session, made: SessionPlan, place: Place) -> Session:
    """Return the session as it is written down before QEMU has anything of it."""
    disks = [
        SessionDisk(
            dev=disk.dev,
            size_bytes=disk.size_bytes,
            export=disk.export,
            uri=place.uri(disk.export),
            level_asked=request.level,
            level=disk.choice.level,
            reason_code=disk.choice.code.value,
            reason=disk.choice.reason,
            base_checkpoint=None if disk.choice.base is None else disk.choice.base.id,
            base_context=None if disk.choice.base is None else disk.contexts[disk.choice.base.id],
            contexts=disk.contexts,
        )
        for disk in made.disks
    ]
    assert session.internals is not None
    return replace(
        session,
        checkpoint=made.checkpoint,
        base_checkpoint=made.base,
        disks=tuple(disks),
        warnings=tuple(_fallbacks(request, disks)),
        internals=replace(
            session.internals,
            checkpoint=made.pending([disk.node for disk in made.disks], time=session.started),
            new_marks=tuple(made.new_marks),
        ),
    )


def _fallbacks(request: SessionRequest, disks: Sequence[SessionDisk]) -> Iterator[Note]:
    """Yield a warning for each disk that is full although the client can expect less."""
    for disk in disks:
        if request.level is Level.AUTO and disk.level is Level.FULL and disk.reason_code != Reason.NO_BASE.value:
            yield Note("DISK_FELL_BACK_TO_FULL", f"Disk {disk.dev} is full: {disk.reason}.", disk.dev)


def _serve(
    request: SessionRequest,
    made: SessionPlan,
    session: Session,
    this: SessionDomain,
    *,
    place: Place,
    first: Session | None,
    undo: Undo,
) -> Session:
    """Make the overlays, take the moment, and export the disks; return the session as it is open.

    ``first`` has started the server already.
    """
    monitor = this.monitor
    host = this.source.handle.host
    is_running = this.source.is_running
    if is_running:
        assert request.scratch is not None
        session_scratch.open_overlays(
            monitor,
            made.disks,
            request.scratch,
            undo=undo,
            security_labels=this.source.domain.security_labels,
            there=None if host.is_local else session_elsewhere.scratch(request.scratch, this),
            check=this.stop.check,
        )
        scratch.prepare(monitor, session_plan.scratch_sizes(made.new), naming=this.naming, undo=undo, stop=this.stop)
        undo.push("remove the new end marks", lambda: leftovers.remove_end_marks(monitor, made.new_marks))
        undo.push("remove the new bitmaps", lambda: leftovers.remove_bitmaps(monitor, [one.place for one in made.new]))
        undo.push("end the jobs", lambda: jobs.cancel(monitor, made.job_ids))
        this.source.mark_devices([disk.node.disk for disk in made.disks])
    else:
        with _refusals_of_lock(this):
            session_lock.lock(monitor, made.disks, this.naming)
    if first is None or first.socket is None:
        session_server.start(monitor, place, this.naming, undo=undo)
    elif host.is_local:
        session_server.share(Path(first.socket), place)
    if place.socket is not None and not host.is_local and not sockets.is_served(place.socket):
        # ssh finds out only with a client whether it may.
        raise ForwardingError(host.link().host, "a client of its socket here gets no answer")
    this.stop.check()
    this.source.prepare_freeze(request.quiesce, limit_s=request.freeze_limit_s)  # resumed since
    actions = made.moment()
    link = None if host.is_local else host.link(check=this.stop.check)
    with this.source.frozen(request.quiesce, this.reporter, link=link) as freeze:
        time = datetime.now(timezone.utc)
        if actions:
            send(monitor, {"actions": actions})
    if freeze.frozen_ms:
        this.reporter.step(f"Filesystems were frozen for {freeze.frozen_ms} ms.")
    nodes = session_survey.after(made, this)
    session_server.add_exports(monitor, made.disks, undo=undo)
    assert session.internals is not None
    return replace(
        session,
        state=SessionState.OPEN,
        started=time,
        expires=time + timedelta(seconds=request.ttl_s),
        consistency=freeze.consistency,
        frozen_ms=freeze.frozen_ms,
        disks=_with_dirty(made, session, this),
        internals=replace(session.internals, checkpoint=made.pending(nodes, time=time)),
    )


def _with_daemon(session: Session, off: OffSource) -> Session:
    """Return the session with the storage daemon that serves it, or that is there already and with what it reads."""
    assert session.internals is not None
    if session.internals.is_linked:
        return replace(session, internals=replace(session.internals, stamps=off.stamps()))
    return replace(session, internals=replace(session.internals, daemon=Process.of(off.daemon_pid)))


@contextmanager
def _refusals_of_lock(this: SessionDomain) -> Iterator[None]:
    """Say what it means that another process has an image open."""
    try:
        yield
    except QmpError as err:
        if err.description.is_of_lock:
            raise this.source.locked_out() from err
        raise


def _with_dirty(made: SessionPlan, session: Session, this: SessionDomain) -> tuple[SessionDisk, ...]:
    """Return the disks with the sizes of the changes since their bases."""
    nodes = block_nodes(this.monitor)
    disks = []
    for planned, disk in zip(made.disks, session.disks):
        bitmap = nodes.bitmaps(planned.exported).get(disk.base_checkpoint or "")
        disks.append(replace(disk, dirty_bytes=None if bitmap is None else bitmap.dirty_bytes))
    return tuple(disks)


def _remove_sockets(place: Place) -> None:
    """Remove the directory of the sockets, but for a server that could not be stopped: whoever tries again needs it."""
    if not session_server.is_served(place):
        sockets.remove_directory(place.directory)


def _forget(domain: DomainStore, session_id: str, place: Place, *, is_clean: bool) -> None:
    """Remove the record of a session that could not be begun; whoever comes next needs it if something is left."""
    if is_clean and not place.directory.exists():
        domain.forget(session_id)
