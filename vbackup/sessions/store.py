"""The state directory of pull sessions: what survives vbackup, QEMU and the host.

    DIR/<domain uuid>/lock                  held while somebody begins or ends a session of the domain
    DIR/<domain uuid>/tracker-NAME.json     the checkpoints of a tracker; written by ``commit`` alone
    DIR/<domain uuid>/session-ID.json       a session (vbackup.sessions.record)

DIR is /var/lib/vbackup/sessions for root and $XDG_STATE_HOME/vbackup/sessions for others; VBACKUP_SESSIONS names
another one, which has to be its user's alone. Files have mode 0600, directories 0700. A file is replaced by a rename: a
reader sees it complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from vbackup import names
from vbackup.errors import BusyError, StorageError, UnknownSessionError, UnknownTrackerError
from vbackup.fields import Fields, parse_json
from vbackup.files import fsync, make_private, open_regular, read_regular, replace_text, storage_errors
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
                    session = _load(path, record.read)
                    known = {one.name: one for one in self.trackers(uuid)}
                    return _settled(session, known.get(session.tracker))
        raise UnknownSessionError(session_id)

    def sessions(self, uuid: str) -> list[Session]:
        """Return the sessions of a domain, the oldest first, as written if their tracker is damaged.

        Raises StorageError.
        """
        found = [_load(path, record.read) for path in self._files(uuid, _SESSION)]
        known = {one.name: one for one in self.trackers(uuid)}
        return sorted((_settled(one, known.get(one.tracker)) for one in found), key=lambda one: one.started)

    def trackers(self, uuid: str) -> list[Tracker]:
        """Return those trackers of a domain that can be read, by name. Raises StorageError."""
        return [one for one in self._trackers(uuid) if isinstance(one, Tracker)]

    def damaged_trackers(self, uuid: str) -> list[StorageError]:
        """Return why the other trackers of a domain cannot be read. Raises StorageError."""
        return [one for one in self._trackers(uuid) if isinstance(one, StorageError)]

    def tracker_names(self, uuid: str) -> list[str]:
        """Return the names of all trackers of a domain, damaged or not. Raises StorageError."""
        return [_tracker_name(path) for path in sorted(self._files(uuid, _TRACKER))]

    def session_ids(self, uuid: str) -> list[str]:
        """Return the ids of all sessions of a domain, the oldest first. Raises StorageError."""
        return sorted(path.stem[len(_SESSION) :] for path in self._files(uuid, _SESSION))

    def tracker(self, uuid: str, name: str, *, domain_name: str) -> Tracker:
        """Return a tracker. Raises UnknownTrackerError, StorageError if it is damaged."""
        found = self.tracker_or_none(uuid, name)
        if found is None:
            raise UnknownTrackerError(name, domain_name, [one.name for one in self.trackers(uuid)])
        return found

    def tracker_or_none(self, uuid: str, name: str) -> Tracker | None:
        """Return a tracker, None if it is not known. Raises StorageError if it is damaged."""
        path = self.directory / uuid / f"{_TRACKER}{name}.json"
        return _load_tracker(path) if names.TRACKER.fullmatch(name) and os.path.lexists(path) else None

    def has_old(self, uuid: str, now: datetime) -> bool:
        """Return True if a domain has records of sessions that nobody has written for long (KEPT_FOR), or nothing.

        Only the times of the files are looked at. Raises StorageError.
        """
        before = (now - KEPT_FOR).timestamp()
        records = self._files(uuid, _SESSION)
        with storage_errors(f"read {self.directory / uuid}"):
            for path in records:
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        return True
        return not records and not self._files(uuid, _TRACKER)

    def uuids(self) -> list[str]:
        """Return the domains that have or have had sessions. Raises StorageError."""
        with storage_errors(f"read {self.directory}"):
            if not self.directory.is_dir():
                return []
            return sorted(path.name for path in self.directory.iterdir() if names.UUID.fullmatch(path.name))

    @contextmanager
    def locked(
        self, uuid: str, *, stop: Stop, name: str | None = None, limit_s: float | None = None
    ) -> Iterator[DomainStore]:
        """Lock the sessions of a domain for the block; ``name`` is the domain's, for messages.

        Raises BusyError if another vbackup has them for ``limit_s`` seconds (default: LOCK_S), StorageError, and what
        ``stop`` raises.
        """
        fd = self._lock(uuid, name or uuid, LOCK_S if limit_s is None else limit_s, stop)
        try:
            yield DomainStore(self, uuid)
        finally:
            os.close(fd)

    def _lock(self, uuid: str, name: str, limit_s: float, stop: Stop) -> int:
        directory = self.directory / uuid
        while True:
            with storage_errors(f"use the directory {directory}"):
                make_private(self.directory)
                try:
                    make_private(directory)
                    fd = open_regular(directory / _LOCK, os.O_RDWR | os.O_CREAT)
                except FileNotFoundError:
                    stop.check()
                    continue  # its last holder has just removed the directory
            try:
                _wait(fd, name, limit_s, stop)
                if os.fstat(fd).st_nlink:
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # it was removed while we waited

    def _files(self, uuid: str, prefix: str) -> list[Path]:
        directory = self.directory / uuid
        with storage_errors(f"read {directory}"):
            return list(directory.glob(f"{prefix}*.json")) if directory.is_dir() else []

    def _trackers(self, uuid: str) -> Iterator[Tracker | StorageError]:
        for path in sorted(self._files(uuid, _TRACKER)):
            try:
                yield _load_tracker(path)
            except StorageError as err:
                yield err


@dataclass(frozen=True)
class DomainStore:
    """The sessions of one domain, whose lock is held."""

    store: Store
    uuid: str

    def sessions(self) -> list[Session]:
        """Return the sessions, the oldest first. Raises StorageError."""
        return self.store.sessions(self.uuid)

    def tracker(self, name: str, *, domain_name: str) -> Tracker:
        """Return a tracker; a new one if it is not known. Raises StorageError if it is damaged."""
        return self.store.tracker_or_none(self.uuid, name) or Tracker(name, domain_name, self.uuid)

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

    def remove_if_empty(self) -> None:
        """Remove the directory if it has no session and no tracker any more. Raises StorageError.

        Whoever waits for the lock finds out that it has no name any more, and makes the directory again.
        """
        directory = self.store.directory / self.uuid
        with storage_errors(f"remove {directory}"):
            if [path.name for path in directory.iterdir()] == [_LOCK]:
                (directory / _LOCK).unlink()
                directory.rmdir()

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


def _tracker_name(path: Path) -> str:
    return path.stem.removeprefix(_TRACKER)


def _load_tracker(path: Path) -> Tracker:
    """Return the tracker of a file. Raises StorageError, which says how to go on without it."""
    name, uuid = _tracker_name(path), path.parent.name
    try:
        tracker = _load(path, trackers.read)
        if (tracker.name, tracker.domain_uuid) != (name, uuid):
            raise StorageError(f"{path} is of tracker {tracker.name} of domain {tracker.domain_uuid}.")
    except StorageError as err:
        raise StorageError(
            f"Tracker {name} cannot be used: {err} If the file is damaged, 'vbackup tracker forget {uuid} --tracker"
            f" {name}' removes it; the next session is full then."
        ) from err
    return tracker


def _wait(fd: int, name: str, limit_s: float, stop: Stop) -> None:
    deadline, pause = time.monotonic() + limit_s, threading.Event()
    while True:
        stop.check()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"Another vbackup has been beginning or ending a session of domain {name} for {limit_s:.0f} s; run"
                    " the same command again."
                ) from err
            pause.wait(TICK_S)
        else:
            return
