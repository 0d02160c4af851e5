"""End what a pull session has in QEMU: exports, jobs, overlays, the server, and the bitmaps of an unused checkpoint.

A tracker has one session at a time, so all that bears its id belongs to the session, or to a dead one before it.
Whatever of it is there is ended, whichever step a dead vbackup had reached; doing it twice does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from vbackup.domain import detached
from vbackup.engine import leftovers, session_server
from vbackup.engine.session_server import Place
from vbackup.errors import VbackupError
from vbackup.model import NodeBitmap
from vbackup.names import Naming
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter
from vbackup.sessions import sockets
from vbackup.sessions.record import Session
from vbackup.undo import Undo

log = logging.getLogger(__name__)

#: Completes the warning about what could not be ended.
TRIES_AGAIN = "The next session of this domain"


def in_qemu(
    session: Session,
    monitor: Monitor,
    naming: Naming,
    *,
    keeps_checkpoint: bool,
    reporter: Reporter,
    states: Callable[[str], Collection[str]] | None = None,
) -> bool:
    """End what QEMU has of a session; return True if nothing is left.

    ``keeps_checkpoint``: the bitmaps of its checkpoint stay. ``states``: see Place. Warnings report what cannot be
    ended.
    """
    place = place_of(session, states)
    internals = session.internals
    checkpoint = internals.checkpoint if internals is not None else None
    marks = internals.new_marks if internals is not None else ()
    tops = {disk.dev: disk.node_name for disk in checkpoint.disks.values()} if checkpoint is not None else {}
    with Undo(reporter, tries_again=TRIES_AGAIN) as undo:
        undo.push("close the disks that were detached", lambda: _close_detached(monitor, tops))
        if checkpoint is not None and not keeps_checkpoint:
            bitmaps = [NodeBitmap(disk.node_name, disk.bitmap) for disk in checkpoint.disks.values() if disk.bitmap]
            undo.push("remove the new end marks", lambda: leftovers.remove_end_marks(monitor, marks))
            undo.push("remove the new bitmaps", lambda: leftovers.remove_bitmaps(monitor, bitmaps))
        if place is not None:
            undo.push("stop the NBD server", lambda: session_server.stop_if_unused(monitor, naming, place))
        undo.push("end the jobs and close the scratch images", lambda: leftovers.remove_leftovers(monitor, naming))
        undo.push(
            "end the exports",
            lambda: session_server.remove_exports(monitor, session_server.of_tracker(monitor, naming)),
        )
    return undo.is_complete


def place_of(session: Session, states: Callable[[str], Collection[str]] | None = None) -> Place | None:
    """Return where a session is served, None if that was not decided yet."""
    directory = session_directory(session)
    if directory is None or session.internals is None:
        return None
    bound = session.internals.server
    return Place(
        directory,
        session.listen,
        None if session.tls is None else Path(session.tls),
        server=None if bound is None else Path(bound),
        states=states,
    )


def session_directory(session: Session) -> Path | None:
    """Return the directory of a session's sockets, None if it has none."""
    named = session.internals.sockets if session.internals is not None else None
    return None if named is None else Path(named)


def on_host(session: Session) -> None:
    """Remove the session's sockets. Raises StorageError."""
    directory = session_directory(session)
    if directory is not None:
        sockets.remove_directory(directory)


def is_served(session: Session, monitor: Monitor, naming: Naming) -> bool:
    """Return True if QEMU exports all disks of the session, as they were at its moment.

    If a job that saves what the guest overwrites has ended, which only somebody else can have done, its disk would be
    read as it is now.
    """
    wanted = {session_server.export_id(naming, session.id, disk.dev) for disk in session.disks}
    if not wanted or not wanted <= session_server.exports(monitor):
        return False
    if session.internals is not None and session.internals.daemon is not None:
        return True  # a domain that is off has no such jobs
    found = jobs.query(monitor)
    saving = [found.get(naming.fleecing_job(session.checkpoint, disk.dev)) for disk in session.disks]
    return all(job is not None and job.status in jobs.CHANGEABLE for job in saving)


def _close_detached(monitor: Monitor, tops: dict[str, str]) -> None:
    try:
        for dev in detached.close_detached(monitor, tops):
            log.debug("disk %s was detached during the session", dev)
    except VbackupError as err:
        log.debug("%s", err)
