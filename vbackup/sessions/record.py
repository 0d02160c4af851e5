"""A pull session: one moment of a domain's disks, which QEMU serves by NBD until the client commits or aborts.

``document`` is what the client reads (schema vbackup.session/1). The state directory (vbackup.sessions.store) has the
same object with one more member, ``internal``: what vbackup needs to end the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from vbackup import names
from vbackup.errors import StorageError
from vbackup.fields import Fields
from vbackup.model import Consistency, Level, NodeBitmap
from vbackup.process import Process
from vbackup.remote import address
from vbackup.sessions.checkpoint import Checkpoint, iso, moment, session_id, word

SCHEMA = "vbackup.session/1"
#: Why a session failed whose ``writer`` has died.
KILLED = "vbackup ended while it began the session"
#: Why a session failed that was open.
QEMU_ENDED = "the QEMU that served it has ended, or serves it no more"
#: The same of a session on another host.
LINK_LOST = "the SSH connection that it was served through was lost"
WATCHER_ENDED = "the process that had the SSH connection has ended"


class SessionState(Enum):
    """What has become of a session."""

    BEGINNING = "beginning"  #: vbackup is making it, or died while it did
    OPEN = "open"  #: the disks are served
    COMMITTED = "committed"  #: its checkpoint is the tracker's base
    ABORTED = "aborted"  #: the client gave it up; the base is as it was
    EXPIRED = "expired"  #: it was not committed in time; the base is as it was
    FAILED = "failed"  #: it could not go on; the base is as it was

    @property
    def has_ended(self) -> bool:
        """True if nothing is served any more."""
        return self not in (SessionState.BEGINNING, SessionState.OPEN)


@dataclass(frozen=True)
class Note:
    """A warning, with a code for programs."""

    code: str
    message: str
    dev: str | None = None  #: the disk that it is about

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"code": self.code, "message": self.message, **({} if self.dev is None else {"disk": self.dev})}

    @classmethod
    def read(cls, fields: Fields) -> Note:
        """Return the warning that ``document`` describes. Raises StorageError."""
        return cls(fields.text("code"), fields.text("message"), fields.optional_text("disk"))


@dataclass(frozen=True)
class SessionDisk:
    """One disk of a session, as it was at the moment."""

    dev: str
    size_bytes: int
    export: str  #: name of the NBD export
    uri: str  #: NBD URI of the export (nbd+unix:// or nbds://)
    level_asked: Level
    level: Level  #: as granted: a disk without a base that can be trusted is full
    reason_code: str  #: why, for programs (vbackup.engine.base.Reason)
    reason: str  #: the same, for people
    base_checkpoint: str | None  #: what an incremental or differential disk starts from
    base_context: str | None  #: metadata context of the changes since then, "qemu:dirty-bitmap:NAME"
    contexts: Mapping[str, str] = field(default_factory=dict)  #: the same by checkpoint, for each that can be trusted
    dirty_bytes: int | None = None  #: size of the changes since the base; None for a full

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "dev": self.dev,
            "size_bytes": self.size_bytes,
            "export": self.export,
            "uri": self.uri,
            "level_asked": self.level_asked.value,
            "level": self.level.value,
            "reason_code": self.reason_code,
            "reason": self.reason,
            "base_checkpoint": self.base_checkpoint,
            "base_context": self.base_context,
            "contexts": dict(self.contexts),
            "dirty_bytes": self.dirty_bytes,
        }

    @classmethod
    def read(cls, fields: Fields) -> SessionDisk:
        """Return the disk that ``document`` describes. Raises StorageError."""
        dev = fields.text("dev")
        if not names.DEV.fullmatch(dev):
            raise StorageError(f"{dev[:50]!r} is not the name of a disk.")
        of = fields.object("contexts")
        contexts = fields.raw("contexts")
        return cls(
            dev=dev,
            size_bytes=fields.integer("size_bytes"),
            export=fields.text("export"),
            uri=fields.text("uri"),
            level_asked=word(Level, fields.text("level_asked")),
            level=word(Level, fields.text("level")),
            reason_code=fields.text("reason_code"),
            reason=fields.text("reason"),
            base_checkpoint=fields.optional_text("base_checkpoint"),
            base_context=fields.optional_text("base_context"),
            contexts={name: of.text(name) for name in contexts},
            dirty_bytes=fields.integer("dirty_bytes") if "dirty_bytes" in fields else None,
        )


@dataclass(frozen=True)
class Internals:
    """What vbackup needs to end a session, whoever began it."""

    writer: Process  #: the vbackup that begins it
    scratch: str  #: path of the scratch directory
    sockets: str | None = None  #: path of the directory of its sockets
    checkpoint: Checkpoint | None = None  #: what ``commit`` gives the tracker; None before the plan is made
    server: str | None = None  #: path at which the NBD server was bound; another session's if they share it
    there: str | None = None  #: of a session on another host: path of its socket there
    new_marks: Sequence[NodeBitmap] = ()  #: end marks that begin with it (vbackup.engine.endmark)
    watcher: Process | None = None  #: ends the session when it expires
    daemon: Process | None = None  #: the storage daemon of a domain that is off, on the domain's host
    #: of a domain on another host that is off: modification time in ns and size in bytes of its files at the moment
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    connection: str | None = None  #: libvirt's URI; None: the default
    exclusive: bool = False  #: no other host uses the images while the domain is off
    is_closed: bool = False  #: nothing is left of it in QEMU

    @property
    def is_linked(self) -> bool:
        """True if the domain is on another host, from where its watcher has the NBD server forwarded by SSH."""
        return self.connection is not None and address.parse(self.connection) is not None

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "writer": self.writer.document(),
            "scratch": self.scratch,
            "sockets": self.sockets,
            "checkpoint": None if self.checkpoint is None else self.checkpoint.document(),
            "server": self.server,
            "there": self.there,
            "new_marks": [{"node_name": one.node_name, "bitmap": one.bitmap} for one in self.new_marks],
            "watcher": None if self.watcher is None else self.watcher.document(),
            "daemon": None if self.daemon is None else self.daemon.document(),
            "stamps": {path: list(stamp) for path, stamp in self.stamps.items()},
            "connection": self.connection,
            "exclusive": self.exclusive,
            "is_closed": self.is_closed,
        }

    @classmethod
    def read(cls, fields: Fields) -> Internals:
        """Return what ``document`` describes. Raises StorageError."""
        return cls(
            writer=Process.read(fields.object("writer")),
            scratch=fields.text("scratch"),
            sockets=fields.optional_text("sockets"),
            checkpoint=Checkpoint.read(fields.object("checkpoint")) if "checkpoint" in fields else None,
            server=fields.optional_text("server"),
            there=fields.optional_text("there"),
            new_marks=tuple(
                NodeBitmap(one.text("node_name"), one.text("bitmap")) for one in fields.objects("new_marks")
            ),
            watcher=Process.read(fields.object("watcher")) if "watcher" in fields else None,
            daemon=Process.read(fields.object("daemon")) if "daemon" in fields else None,
            stamps=_stamps(fields.object("stamps")) if "stamps" in fields else {},
            connection=fields.optional_text("connection"),
            exclusive=fields.boolean("exclusive"),
            is_closed=fields.boolean("is_closed"),
        )


def _stamps(fields: Fields) -> Mapping[str, tuple[int, int]]:
    """Return the stamps of files. Raises StorageError."""
    found = {}
    for path in fields.names:
        stamp = fields.raw(path)
        if type(stamp) is not list or [type(one) for one in stamp] != [int, int]:
            raise StorageError(f"{stamp!r:.100} is not the modification time and the size of {path[:200]!r}.")
        found[path] = (stamp[0], stamp[1])
    return found


@dataclass(frozen=True)
class Session:
    """A pull session."""

    id: str
    tracker: str
    domain_name: str
    domain_uuid: str
    state: SessionState
    level: Level  #: as asked for; ``auto`` decides for each disk
    base_asked: str | None  #: the checkpoint that the client named
    checkpoint: str  #: what ``commit`` makes the base of the tracker's next session
    base_checkpoint: str | None  #: the newest checkpoint that a disk starts from; None if all are full
    started: datetime
    expires: datetime
    socket: str | None = None  #: path of the unix socket; None with ``listen``
    listen: str | None = None  #: HOST:PORT of the TLS server
    tls: str | None = None  #: directory of its certificates
    consistency: Consistency = Consistency.CRASH
    frozen_ms: int = 0
    disks: Sequence[SessionDisk] = ()
    warnings: Sequence[Note] = ()
    ended: datetime | None = None
    end_reason: str | None = None  #: why it failed
    internals: Internals | None = None

    def disk(self, dev: str) -> SessionDisk | None:
        """Return the disk of that name, or None if the session has none."""
        return next((disk for disk in self.disks if disk.dev == dev), None)

    @property
    def is_closed(self) -> bool:
        """True if it has ended and nothing of it is left in QEMU."""
        return self.state.has_ended and self.internals is not None and self.internals.is_closed

    def has_expired(self, now: datetime) -> bool:
        """Return True if its time is up; that does not end it yet."""
        return now >= self.expires

    def document(self) -> dict[str, Any]:
        """Return what the client reads, as a JSON object."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "tracker": self.tracker,
            "domain": {"name": self.domain_name, "uuid": self.domain_uuid},
            "state": self.state.value,
            "level": self.level.value,
            "base_asked": self.base_asked,
            "checkpoint": self.checkpoint,
            "base_checkpoint": self.base_checkpoint,
            "started": iso(self.started),
            "expires": iso(self.expires),
            "socket": self.socket,
            "listen": self.listen,
            "tls": self.tls,
            "consistency": self.consistency.value,
            "frozen_ms": self.frozen_ms,
            "disks": [disk.document() for disk in self.disks],
            "warnings": [note.document() for note in self.warnings],
            "ended": None if self.ended is None else iso(self.ended),
            "end_reason": self.end_reason,
        }

    def record(self) -> dict[str, Any]:
        """Return what the state directory has of it, as a JSON object."""
        internals = None if self.internals is None else self.internals.document()
        return {**self.document(), "internal": internals}


def read(fields: Fields) -> Session:
    """Return the session that ``record`` or ``document`` describes. Raises StorageError."""
    if fields.text("schema") != SCHEMA:
        raise StorageError(
            f"The session has format {fields.text('schema')[:50]!r}, but this vbackup knows only {SCHEMA}."
        )
    domain = fields.object("domain")
    tracker, uuid = fields.text("tracker"), domain.text("uuid")
    if not names.TRACKER.fullmatch(tracker) or not names.UUID.fullmatch(uuid):
        raise StorageError(f"{tracker[:70]!r} of domain {uuid[:50]!r} is not a tracker that vbackup writes down.")
    return Session(
        id=session_id(fields.text("id")),
        tracker=tracker,
        domain_name=domain.text("name"),
        domain_uuid=uuid,
        state=word(SessionState, fields.text("state")),
        level=word(Level, fields.text("level")),
        base_asked=fields.optional_text("base_asked"),
        checkpoint=fields.text("checkpoint"),
        base_checkpoint=fields.optional_text("base_checkpoint"),
        started=moment(fields.text("started")),
        expires=moment(fields.text("expires")),
        socket=fields.optional_text("socket"),
        listen=fields.optional_text("listen"),
        tls=fields.optional_text("tls"),
        consistency=word(Consistency, fields.text("consistency")),
        frozen_ms=fields.integer("frozen_ms"),
        disks=tuple(SessionDisk.read(disk) for disk in fields.objects("disks")),
        warnings=tuple(Note.read(note) for note in fields.objects("warnings")),
        ended=moment(fields.text("ended")) if "ended" in fields else None,
        end_reason=fields.optional_text("end_reason"),
        internals=Internals.read(fields.object("internal")) if "internal" in fields else None,
    )
