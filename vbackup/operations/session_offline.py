"""Begin the checkpoint of a domain that is off: when its session is committed, not when it is begun.

The session's daemon has the images open only for reading. Its locks keep everybody else from writing, so the disks are
still as they were at the moment. It lets go of them, and another one adds the bitmaps. What was changed in between
shows in the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import DomainHandle
from vbackup.domain.image_host import ImagesThere
from vbackup.engine import leftovers, scratch, session_close, session_history, session_plan
from vbackup.engine.session_survey import SessionDomain
from vbackup.errors import SessionEndedError, VbackupError
from vbackup.layers import FileState
from vbackup.model import DiskNode
from vbackup.operations import session_daemon, session_recovery
from vbackup.operations.session_recovery import SessionQemu
from vbackup.qemu.transaction import send
from vbackup.report import Reporter
from vbackup.sessions.checkpoint import Checkpoint
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.store import DomainStore
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop
from vbackup.undo import Undo


def checkpoint_of(
    domain: DomainStore,
    session: Session,
    handle: DomainHandle | None,
    qemu: SessionQemu,
    *,
    reporter: Reporter,
    stop: Stop,
) -> Checkpoint:
    """End the session's daemon, begin the checkpoint, and return it.

    Raises SessionEndedError if a disk may have been changed, and what opening the images raises: the session has failed
    then.
    """
    assert session.internals is not None
    pending = session.internals.checkpoint
    assert pending is not None
    session_daemon.end(session, qemu.monitor, reporter, link=qemu.link)
    tracker = domain.tracker(session.tracker, domain_name=session.domain_name)
    try:
        if handle is None or handle.is_active():
            raise SessionEndedError(session.id, SessionState.FAILED.value, "the domain was started")
        _refuse_changed(session, pending, handle)
        access = Access(session.internals.exclusive, check=stop.check)
        with source.open_source(handle, reporter=reporter, access=access) as opened:
            this = SessionDomain(opened, qemu.naming, reporter, stop)
            disks = [disk for disk in opened.domain.disks if disk.dev in pending.disks]
            nodes = opened.disk_nodes(disks)
            if leftovers.remove_uncommitted(this.monitor, nodes, tracker.ids, this.naming):
                nodes = opened.disk_nodes(disks)
            _begin(session, tracker, pending, nodes, this)
    except VbackupError as err:
        session_recovery.end(
            domain, session, None, state=SessionState.FAILED, reason=str(err).rstrip("."), reporter=reporter
        )
        raise
    return pending


def _refuse_changed(session: Session, pending: Checkpoint, handle: DomainHandle) -> None:
    """Raise SessionEndedError if the files of a disk are not those of the moment, as far as their times tell.

    It comes before the images are opened: that changes what they store of their bitmaps.
    """
    if handle.host.has_link and session.internals is not None:
        there = ImagesThere(handle.host.link())
        for path, stamp in session.internals.stamps.items():
            if there.stamp(path) != stamp:
                raise SessionEndedError(session.id, SessionState.FAILED.value, f"{path} was changed since")
    for disk in pending.disks.values():
        for file in disk.chain.files if disk.chain is not None else ():
            if file.is_proven and not _is_unchanged(file):
                raise SessionEndedError(
                    session.id, SessionState.FAILED.value, f"{file.path}, of disk {disk.dev}, was changed since"
                )


def _is_unchanged(file: FileState) -> bool:
    try:
        now = Path(file.path).stat()
    except OSError:
        return False
    return (now.st_ino, now.st_size, now.st_mtime_ns) == (file.inode, file.size_bytes, file.mtime_ns)


def _begin(
    session: Session, tracker: Tracker, pending: Checkpoint, nodes: Sequence[DiskNode], this: SessionDomain
) -> None:
    """Add the bitmaps of the checkpoint, in one transaction."""
    history, sizes = session_history.of(tracker), session_plan.sizes_of(nodes)
    new = []
    for node in nodes:
        name = pending.disks[node.disk.dev].bitmap
        if name is not None:
            new.append(
                session_plan.new_bitmap(
                    node,
                    name,
                    history=history,
                    naming=this.naming,
                    sizes=sizes,
                    trusted=_trusted(session, tracker, node.disk.dev),
                )
            )
    with Undo(this.reporter, tries_again=session_close.TRIES_AGAIN) as undo:
        scratch.prepare(this.monitor, session_plan.scratch_sizes(new), naming=this.naming, undo=undo, stop=this.stop)
        actions = [action.document() for one in new for action in one.actions()]
        if actions:
            send(this.monitor, {"actions": actions})


def _trusted(session: Session, tracker: Tracker, dev: str) -> list[str]:
    """Return the bitmaps of a disk that the session has shown the changes since a checkpoint from."""
    disk = session.disk(dev)
    known = tracker.ids.intersection(disk.contexts if disk is not None else ())
    bitmaps = [tracker.checkpoint(one).disks[dev].bitmap for one in known]
    return [bitmap for bitmap in bitmaps if bitmap is not None]
