"""Say which extents of a disk a client of a pull session has to read: ``vbackup session changes``.

QEMU's bitmap says what changed, its block status what reads as zeros (vbackup.qemu.nbd_blocks). The extents can be
asked for in pages, from any offset on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup.errors import (
    DiskError,
    MalformedError,
    Retry,
    SessionEndedError,
    StorageError,
    UnknownCheckpointError,
    UsageError,
)
from vbackup.qemu import nbd_address
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_blocks import Extent, NbdBlocks
from vbackup.sessions.record import QEMU_ENDED, Session, SessionDisk, SessionState
from vbackup.sessions.store import Store

if TYPE_CHECKING:
    import ssl

#: Most extents of one answer, unless the client asks for fewer: they are in memory.
MAX_RESULTS = 1_000_000
#: How long a server of this host may take to accept a connection, before an error counts as it was reported.
PROBE_S = 1.0


class Kind(Enum):
    """Which extents."""

    DELTA = "delta"  #: what changed since the disk's base; of a full, all of the disk
    ALLOCATED = "allocated"  #: what holds data, whether it changed or not
    BETWEEN = "between"  #: what changed between another checkpoint and the session's moment


@dataclass(frozen=True)
class ChangesRequest:
    """The options of ``vbackup session changes``."""

    session: str
    dev: str
    offset_bytes: int = 0
    length_bytes: int | None = None  #: None: up to the end of the disk
    max_results: int = MAX_RESULTS
    kind: Kind = Kind.DELTA
    checkpoint: str | None = None  #: with Kind.BETWEEN
    tls_creds: Path | None = None  #: for a session with TLS; None: the directory that the session was begun with


@dataclass(frozen=True)
class Changes:
    """A page of extents, in ascending order; they do not overlap."""

    session: Session
    disk: SessionDisk
    kind: Kind
    base_checkpoint: str | None  #: what is dirty has changed since then; None: all is dirty
    extents: tuple[Extent, ...]
    next_offset_bytes: int | None  #: where the next page begins; None: that was the last one

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object, without the schema."""
        return {
            "session": self.session.id,
            "disk": self.disk.dev,
            "volume_capacity_bytes": self.disk.size_bytes,
            "block_metadata_type": "VARIABLE_LENGTH",
            "kind": self.kind.value,
            "checkpoint": self.session.checkpoint,
            "base_checkpoint": self.base_checkpoint,
            "extents": [
                {"start": start, "length": length, "dirty": is_dirty, "zero": is_zero}
                for start, length, is_dirty, is_zero in self.extents
            ],
            "next_offset": self.next_offset_bytes,
        }


def run(request: ChangesRequest, *, store: Store) -> Changes:
    """Return a page of extents.

    Raises UnknownSessionError, SessionEndedError, DiskError, UsageError for a range that the disk does not have,
    UnknownCheckpointError, and what NbdBlocks raises.
    """
    session = open_session(store, request.session)
    disk = find_disk(session, request.dev)
    address = nbd_address.parse(disk.uri)
    return page(request, session, disk, store=store, tls=tls_context(address, session, request.tls_creds))


def open_session(store: Store, session_id: str) -> Session:
    """Return a session whose disks are served. Raises UnknownSessionError, SessionEndedError, StorageError."""
    session = store.session(session_id)
    if session.state is not SessionState.OPEN:
        raise ended(session)
    if session.has_expired(datetime.now(timezone.utc)):
        raise SessionEndedError(session.id, SessionState.EXPIRED.value, session.end_reason)
    return session


def ended(session: Session) -> SessionEndedError:
    """Return the error for a session that is not open."""
    is_committed, is_beginning = session.state is SessionState.COMMITTED, session.state is SessionState.BEGINNING
    retry = Retry.NEVER if is_committed else Retry.LATER if is_beginning else Retry.BEGIN
    return SessionEndedError(session.id, session.state.value, session.end_reason, retry=retry)


def find_disk(session: Session, dev: str) -> SessionDisk:
    """Return a disk of the session. Raises DiskError."""
    disk = session.disk(dev)
    if disk is None:
        known = ", ".join(one.dev for one in session.disks)
        raise DiskError(dev, f"session {session.id} does not have it; it has {known}.")
    return disk


def tls_context(address: NbdAddress, session: Session, directory: Path | None) -> ssl.SSLContext | None:
    """Return what a connection to a disk presents and trusts, None for one without TLS. Raises StorageError."""
    if not address.is_tls:
        return None
    if directory is None and session.tls is None:
        raise UsageError(f"Session {session.id} has TLS: give the directory with the certificates (--tls-creds).")
    return nbd_address.client_context(directory or Path(session.tls or ""))


def page(
    request: ChangesRequest, session: Session, disk: SessionDisk, *, store: Store, tls: ssl.SSLContext | None
) -> Changes:
    """Return a page of the extents of a disk of an open session. Raises as ``run``."""
    start = request.offset_bytes
    end = disk.size_bytes if request.length_bytes is None else start + request.length_bytes
    if not 0 <= start <= end <= disk.size_bytes or request.max_results < 1:
        raise UsageError(f"Disk {disk.dev} has {disk.size_bytes} bytes; ask for a range of them, and for some results.")
    checkpoint, context = _base(request, session, disk)
    base_size_bytes = None if checkpoint is None else _size_at(checkpoint, session, disk, store=store)
    address = nbd_address.parse(disk.uri)
    with (
        of_session(store, session),
        NbdBlocks(address, bitmap=context, base_size_bytes=base_size_bytes, tls=tls) as blocks,
    ):
        if blocks.size_bytes != disk.size_bytes:
            raise MalformedError(f"Disk {disk.dev} is served with {blocks.size_bytes} bytes, not {disk.size_bytes}.")
        found = (blocks.allocated if request.kind is Kind.ALLOCATED else blocks.changed)(start, end)
        extents = tuple(itertools.islice(found, request.max_results))
        following = next(found, None)
    next_offset = None if following is None else following.start_bytes
    return Changes(session, disk, request.kind, checkpoint, extents, next_offset)


def _base(request: ChangesRequest, session: Session, disk: SessionDisk) -> tuple[str | None, str | None]:
    """Return the checkpoint since which a block is dirty if it changed, and its context. Raises UsageError."""
    if request.kind is not Kind.BETWEEN:
        if request.checkpoint is not None:
            raise UsageError(f"A checkpoint belongs to {Kind.BETWEEN.value}, not to {request.kind.value}.")
        return disk.base_checkpoint if disk.base_context is not None else None, disk.base_context
    if request.checkpoint is None:
        raise UsageError(f"{Kind.BETWEEN.value} needs a checkpoint, one of: {', '.join(disk.contexts) or 'none'}.")
    if request.checkpoint not in disk.contexts:
        raise UnknownCheckpointError(request.checkpoint, session.tracker, list(disk.contexts), dev=disk.dev)
    return request.checkpoint, disk.contexts[request.checkpoint]


def _size_at(checkpoint_id: str, session: Session, disk: SessionDisk, *, store: Store) -> int | None:
    """Return the disk's size at a checkpoint: a bitmap is clean where the disk has grown, unless the guest wrote."""
    tracker = store.tracker(session.domain_uuid, session.tracker, domain_name=session.domain_name)
    then = tracker.checkpoint(checkpoint_id).disks.get(disk.dev)
    if then is None:
        raise UnknownCheckpointError(checkpoint_id, session.tracker, sorted(tracker.ids))
    return then.size_bytes


@contextmanager
def of_session(store: Store, session: Session) -> Iterator[None]:
    """Let an error within the block that comes from the end of the session say so: SessionEndedError."""
    try:
        yield
    except (StorageError, MalformedError) as err:
        now = store.session(session.id)
        if now.state.has_ended:
            raise ended(now) from err
        if now.has_expired(datetime.now(timezone.utc)):
            raise SessionEndedError(now.id, SessionState.EXPIRED.value) from err
        if _is_abandoned(now):
            raise SessionEndedError(now.id, SessionState.FAILED.value, QEMU_ENDED) from err
        raise


def _is_abandoned(session: Session) -> bool:
    """Return True if nobody listens where the session is served; who next looks after it writes down that it failed."""
    try:
        nbd_address.parse(session.disks[0].uri).connect(PROBE_S).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return True
    except OSError:
        return False
    return False
