"""The state directory of pull sessions: what survives vbackup, QEMU and the host.

    DIR/<domain uuid>/lock                  held while somebody begins or ends a session of the domain
    DIR/<domain uuid>/tracker-NAME.json     the checkpoints of a tracker; written by ``commit`` alone
    DIR/<domain uuid>/session-ID.json       a session (vbackup.sessions.record)

DIR is /var/lib/vbackup/sessions for root and $XDG_STATE_HOME/vbackup/sessions for others; VBACKUP_SESSIONS names
another one. Files have mode 0600, directories 0700. A file is replaced by a rename: a reader sees it complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from vbackup import names
from vbackup.errors import BusyError, StorageError, UnknownSessionError, UnknownTrackerError
from vbackup.fields import Fields, parse_json
from vbackup.files import fsync, open_regular, read_regular, replace_text, storage_errors
from vbackup.sessions import record, trackers
from vbackup.sessions.record import Session, SessionState
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

ENVIRONMENT = "VBACKUP_SESSIONS"
#: How long to wait for another vbackup that begins or ends a session of the domain, which takes seconds.
LOCK_S, TICK_S = 60.0, 0.1
#: How long the record of a session that has ended is kept, so that its client can ask again what became of it.
KEPT_FOR = timedelta(days=7)
_MAX_BYTES = 16 * 1024 * 1024
_LOCK = "lock"
_SESSION, _TRACKER = "session-", "tracker-"

_Read = TypeVar("_Read")


def default_directory() -> Path:
    """Return where the state is, unless an option says it."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/vbackup/sessions")
    home = os.environ.get("XDG_STATE_HOME") or os.fspath(Path.home() / ".local" / "state")
    return Path(home) / "vbackup" / "sessions"


def may_have(uuid: str) -> bool:
    """Return True if a domain has, or has had, pull sessions on this host."""
    return (default_directory() / uuid).is_dir()


@dataclass(frozen=True)
class Store:
    """The state directory; it need not exist yet."""

    directory: Path

    def session(self, session_id: str) -> Session:
        """Return the session with that id, as it was written last. Raises UnknownSessionError, StorageError."""
        if names.SESSION_ID.fullmatch(session_id):
            for uuid in self.uuids():
                path = self.directory / uuid / f"{_SESSION}{session_id}.json"
                if os.path.lexists(path):
                    return _settled(_load(path, record.read), self._tracker_or_none(uuid, path))
        raise UnknownSessionError(session_id)

    def sessions(self, uuid: str) -> list[Session]:
        """Return the sessions of a domain, the oldest first. Raises StorageError."""
        found = [_load(path, record.read) for path in self._files(uuid, _SESSION)]
        known = {one.name: one for one in self.trackers(uuid)}
        return sorted((_settled(one, known.get(one.tracker)) for one in found), key=lambda one: one.started)

    def trackers(self, uuid: str) -> list[Tracker]:
        """Return the trackers of a domain by name. Raises StorageError."""
        return [_load(path, trackers.read) for path in sorted(self._files(uuid, _TRACKER))]

    def tracker(self, uuid: str, name: str, *, domain_name: str) -> Tracker:
        """Return a tracker. Raises UnknownTrackerError, StorageError."""
        known = self.trackers(uuid)
        for one in known:
            if one.name == name:
                return one
        raise UnknownTrackerError(name, domain_name, [one.name for one in known])

    def uuids(self) -> list[str]:
        """Return the domains that have or have had sessions. Raises StorageError."""
        with storage_errors(f"read {self.directory}"):
            if not self.directory.is_dir():
                return []
            return sorted(path.name for path in self.directory.iterdir() if names.UUID.fullmatch(path.name))

    @contextmanager
    def locked(self, uuid: str, *, stop: Stop, name: str | None = None) -> Iterator[DomainStore]:
        """Lock the sessions of a domain for the block; ``name`` is the domain's, for messages.

        Raises BusyError if another vbackup has them for LOCK_S seconds, StorageError, and what ``stop`` raises.
        """
        directory = self.directory / uuid
        with storage_errors(f"use the directory {directory}"):
            for made in (self.directory, directory):  # mkdir gives the mode to the last one only
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = open_regular(directory / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            _wait(fd, name or uuid, stop)
            yield DomainStore(self, uuid)
        finally:
            os.close(fd)

    def _files(self, uuid: str, prefix: str) -> list[Path]:
        directory = self.directory / uuid
        with storage_errors(f"read {directory}"):
            return list(directory.glob(f"{prefix}*.json")) if directory.is_dir() else []

    def _tracker_or_none(self, uuid: str, path: Path) -> Tracker | None:
        name = _load(path, record.read).tracker
        return next((one for one in self.trackers(uuid) if one.name == name), None)


@dataclass(frozen=True)
class DomainStore:
    """The sessions of one domain, whose lock is held."""

    store: Store
    uuid: str

    def sessions(self) -> list[Session]:
        """Return the sessions, the oldest first. Raises StorageError."""
        return self.store.sessions(self.uuid)

    def tracker(self, name: str, *, domain_name: str) -> Tracker:
        """Return a tracker; a new one if it is not known. Raises StorageError."""
        known = next((one for one in self.store.trackers(self.uuid) if one.name == name), None)
        return known or Tracker(name, domain_name, self.uuid)

    def write(self, session: Session) -> Session:
        """Write a session down, and return it. Raises StorageError, NoSpaceError."""
        self._replace(f"{_SESSION}{session.id}.json", session.record())
        return session

    def forget(self, session_id: str) -> None:
        """Remove the record of a session. Raises StorageError."""
        path = self._path(f"{_SESSION}{session_id}.json")
        with storage_errors(f"remove {path}"):
            path.unlink(missing_ok=True)

    def write_tracker(self, tracker: Tracker) -> Tracker:
        """Write a tracker down, and return it: what has it as its base is committed then. Errors as for ``write``."""
        self._replace(f"{_TRACKER}{tracker.name}.json", tracker.document())
        return tracker

    def forget_tracker(self, name: str) -> None:
        """Remove a tracker. Raises StorageError."""
        path = self._path(f"{_TRACKER}{name}.json")
        with storage_errors(f"remove {path}"):
            path.unlink(missing_ok=True)
            fsync(path.parent)

    def forget_old(self, now: datetime) -> None:
        """Remove the records of sessions that ended long ago (KEPT_FOR), and have left nothing. Raises StorageError."""
        for session in self.sessions():
            if session.ended is not None and session.is_closed and now - session.ended > KEPT_FOR:
                self.forget(session.id)

    def _path(self, name: str) -> Path:
        return self.store.directory / self.uuid / name

    def _replace(self, name: str, document: dict[str, Any]) -> None:
        path = self._path(name)
        with storage_errors(f"write {path}"):
            replace_text(path, json.dumps(document, indent=2) + "\n")


def _settled(session: Session, tracker: Tracker | None) -> Session:
    """Return the session as committed if its tracker has its checkpoint: vbackup may have died just then."""
    made = tracker.committed_by(session.id) if tracker is not None else None
    if made is None or session.state is SessionState.COMMITTED:
        return session
    return replace(session, state=SessionState.COMMITTED, ended=session.ended or made.time)


def _load(path: Path, read: Callable[[Fields], _Read]) -> _Read:
    with storage_errors(f"read {path}"):
        data = read_regular(path, max_bytes=_MAX_BYTES)
    try:
        return read(Fields(parse_json(data.decode()), os.fspath(path), StorageError))
    except (ValueError, RecursionError) as err:
        raise StorageError(f"{path} is not valid: {err}.") from err


def _wait(fd: int, name: str, stop: Stop) -> None:
    deadline, pause = time.monotonic() + LOCK_S, threading.Event()
    while True:
        stop.check()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"Another vbackup has been beginning or ending a session of domain {name} for {LOCK_S:.0f} s; run"
                    " the same command again."
                ) from err
            pause.wait(TICK_S)
        else:
            return
