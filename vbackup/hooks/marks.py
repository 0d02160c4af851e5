"""Mark the domains whose disks vbackup has open while they are off, so that the hook script refuses to start them.

    /run/vbackup/offline/<domain uuid>    JSON: pid, start_ticks, boot_id, since, work, and session (its id)

That of a link's helper that is ending its programs also has is_ending: other helpers wait for it.

A mark counts only while the process that set it lives, so a mark left behind has no effect. Marks improve the message;
the locks on the images protect them: without a mark the start fails in QEMU, with a message that says less.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

from vbackup import names
from vbackup.errors import BusyError, MalformedError
from vbackup.fields import Fields
from vbackup.process import Process

log = logging.getLogger(__name__)

#: The same as in the hook script.
DIRECTORY = Path("/run/vbackup/offline")
LIMIT_BYTES = 4096


class Work(Enum):
    """What is done with the disks."""

    BACKUP = "backup"
    RESTORE = "restore"  #: in place
    SESSION = "session"  #: a pull session serves them


@dataclass(frozen=True)
class Mark:
    """The process that has the disks of a domain open."""

    process: Process
    since: datetime
    session: str | None = None  #: id of the pull session that has them


@contextmanager
def offline_mark(uuid: str, work: Work = Work.BACKUP) -> Iterator[None]:
    """Make the hook script refuse to start domain ``uuid`` during the block.

    Within such a block of this process another one changes nothing. Check that the domain is off inside the block,
    not before it: a start that was earlier than the mark has made the domain active by then. A user who may not set
    marks, such as one who is not root, goes without. Raises BusyError if another living process has set one.
    """
    is_set = False
    try:
        is_set = _set(uuid, work)
    except OSError as err:
        log.debug("no mark that domain %s has to stay off: %s", uuid, err)
    try:
        yield
    finally:
        try:
            if is_set:
                _clear(uuid)
        except OSError as err:
            # It stops counting when this process ends.
            log.debug("the mark that domain %s has to stay off remains: %s", uuid, err)


def hand_over(uuid: str, process: Process, *, session: str) -> None:
    """Let the mark of this process count for a pull session, as long as another process lives. Never fails."""
    try:
        with _locked():
            mark = live_mark(uuid)
            if mark is not None and mark.process == Process.this():
                _write(uuid, Mark(process, mark.since, session), Work.SESSION)
    except OSError as err:
        log.debug("the mark that domain %s has to stay off ends with this process: %s", uuid, err)


def live_mark(uuid: str) -> Mark | None:
    """Return the mark of domain ``uuid`` if the process that set it lives, else None; also if it cannot be read."""
    try:
        mark = _read(_path(uuid))
    except (OSError, ValueError, RecursionError, OverflowError, MalformedError) as err:
        log.debug("no mark of domain %s: %s", uuid, err)
        return None
    return mark if mark.process.lives else None


def _path(uuid: str) -> Path:
    assert names.UUID.fullmatch(uuid)  # libvirt made it
    return DIRECTORY / uuid


def _set(uuid: str, work: Work) -> bool:
    """Return False if this process has set one already."""
    mark = Mark(Process.this(), datetime.now(timezone.utc))
    with _locked():
        other = live_mark(uuid)
        if other is not None and other.process != mark.process:
            raise BusyError(_refusal(uuid, other))
        if other is not None:
            return False
        _write(uuid, mark, work)
    return True


def _refusal(uuid: str, other: Mark) -> str:
    if other.session is None:
        return (
            f"Another vbackup (process {other.process.pid}) has the disks of domain {uuid} open, which is off; wait for"
            " it to end."
        )
    return open_in_session(uuid, other.session)


def open_in_session(uuid: str, session: str) -> str:
    """Return the sentence for a domain whose disks a pull session has open."""
    return (
        f"Pull session {session} has the disks of domain {uuid} open, which is off: commit or abort the session"
        f" (vbackup session abort {session}), or wait until it expires."
    )


def _write(uuid: str, mark: Mark, work: Work) -> None:
    """Write a mark down; the directory is locked."""
    path = _path(uuid)
    temporary = path.with_name(f".{uuid}.new")
    since = mark.since.strftime("%Y-%m-%dT%H:%M:%SZ")
    session = {} if mark.session is None else {"session": mark.session}
    text = json.dumps({**mark.process.document(), "since": since, "work": work.value, **session})
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text + "\n")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _clear(uuid: str) -> None:
    with _locked():
        mark = live_mark(uuid)
        if mark is not None and mark.process == Process.this():
            _path(uuid).unlink()


@contextmanager
def _locked() -> Iterator[None]:
    """Create the directory if necessary, and lock it; each holder keeps it only as long as it handles one file."""
    DIRECTORY.parent.mkdir(mode=0o700, exist_ok=True)
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _read(path: Path) -> Mark:
    with path.open("rb") as file:
        fields = Fields(json.loads(file.read(LIMIT_BYTES)), str(path), MalformedError)
    since = datetime.strptime(fields.text("since"), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return Mark(Process.read(fields), since, fields.optional_text("session"))
