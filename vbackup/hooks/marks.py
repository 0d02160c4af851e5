"""Mark the domains whose disks an offline backup has open, so that the hook script refuses to start them.

    /run/vbackup/offline/<domain uuid>    JSON: pid, start_ticks, boot_id, since

A mark counts only while the very process that set it lives, so one that was left behind stops nobody. It is a help, not
the guard: without it QEMU finds the images locked, and the start fails with a message that says less.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from vbackup import names
from vbackup.errors import BusyError, MalformedError
from vbackup.fields import Fields

log = logging.getLogger(__name__)

#: As in the hook script.
DIRECTORY = Path("/run/vbackup/offline")
LIMIT_BYTES = 4096


@dataclass(frozen=True)
class Process:
    """One process and no other: pids are used again, and boots begin anew with them."""

    pid: int
    start_ticks: int  #: field 22 of /proc/PID/stat: clock ticks after the boot
    boot_id: str  #: /proc/sys/kernel/random/boot_id

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None if none lives that has it."""
        try:
            # The second field, the name of the command in parentheses, can have blanks and parentheses in it.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[0] in (b"Z", b"X"):
            return None  # it has ended, and holds nothing open
        return cls(pid, int(fields[19]), boot_id)

    @property
    def lives(self) -> bool:
        """True while it runs."""
        return Process.of(self.pid) == self


@dataclass(frozen=True)
class Mark:
    """Who has the disks of a domain open in an offline backup."""

    process: Process
    since: datetime


@contextmanager
def offline_mark(uuid: str) -> Iterator[None]:
    """Have the hook script refuse to start domain ``uuid`` while in the block.

    Look whether the domain is off within the block, not before it: a start that the mark came too late for has made the
    domain active by then. Where no mark can be set, as for a user who is not root, there is none. Raises BusyError
    if another living process has set one.
    """
    try:
        _set(uuid)
    except OSError as err:
        log.debug("no mark that domain %s is in an offline backup: %s", uuid, err)
    try:
        yield
    finally:
        try:
            _clear(uuid)
        except OSError as err:
            # It ends with this process in any case.
            log.debug("the mark that domain %s is in an offline backup stays: %s", uuid, err)


def live_mark(uuid: str) -> Mark | None:
    """The mark of domain ``uuid`` if the process that set it lives; None too where it cannot be read."""
    try:
        mark = _read(_path(uuid))
    except (OSError, ValueError, RecursionError, OverflowError, MalformedError) as err:
        log.debug("no mark of domain %s: %s", uuid, err)
        return None
    return mark if mark.process.lives else None


def _path(uuid: str) -> Path:
    assert names.UUID.fullmatch(uuid)  # it is libvirt's own
    return DIRECTORY / uuid


def _this_process() -> Process:
    this = Process.of(os.getpid())
    if this is None:
        raise FileNotFoundError("no /proc, which tells processes apart")
    return this


def _set(uuid: str) -> None:
    mark = Mark(_this_process(), datetime.now(timezone.utc))
    with _locked():
        other = live_mark(uuid)
        if other is not None and other.process != mark.process:
            raise BusyError(
                f"Another vbackup (process {other.process.pid}) has the disks of domain {uuid} open in an offline"
                " backup; wait for it to end."
            )
        path = _path(uuid)
        temporary = path.with_name(f".{uuid}.new")
        text = json.dumps({**asdict(mark.process), "since": mark.since.strftime("%Y-%m-%dT%H:%M:%SZ")})
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
        if mark is not None and mark.process == _this_process():
            _path(uuid).unlink()


@contextmanager
def _locked() -> Iterator[None]:
    """The directory, made if need be, for this process only. Nobody keeps it for longer than a file takes."""
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
    process = Process(fields.integer("pid"), fields.integer("start_ticks"), fields.text("boot_id"))
    return Mark(process, datetime.strptime(fields.text("since"), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc))
