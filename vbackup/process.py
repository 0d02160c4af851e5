"""Identify a process uniquely, even across reboots, as pids are reused; and find out who has which files open.

vbackup.repository.journal records the process that writes it, vbackup.hooks the one that has a domain's disks open.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vbackup.errors import VbackupError
from vbackup.fields import Fields

log = logging.getLogger(__name__)

#: The file that has the id of the current boot.
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Process:
    """The identity of one process."""

    pid: int
    start_ticks: int  #: when it started, in clock ticks after boot: field 22 of /proc/PID/stat
    boot_id: str  #: /proc/sys/kernel/random/boot_id

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has this pid now, or None if there is none or it is a zombie."""
        try:
            return cls.parse(pid, Path(f"/proc/{pid}/stat").read_bytes(), Path(BOOT_ID).read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            return None

    @classmethod
    def parse(cls, pid: int, stat: bytes, boot_id: bytes) -> Process | None:
        """Return the process of a host from the content of its /proc/PID/stat and BOOT_ID, None if it is a zombie.

        Raises ValueError or IndexError if that is something else.
        """
        # The second field, the command name in parentheses, can contain blanks and parentheses (proc(5)).
        fields = stat.rpartition(b")")[2].split()
        if fields[0] in (b"Z", b"X"):
            return None  # it has ended and has no open files
        return cls(pid, int(fields[19]), boot_id.decode("ascii").strip())

    @classmethod
    def this(cls) -> Process:
        """Return the current process. Raises FileNotFoundError without /proc."""
        this = cls.of(os.getpid())
        if this is None:
            raise FileNotFoundError("/proc is not mounted; it identifies processes")
        return this

    @classmethod
    def read(cls, fields: Fields) -> Process:
        """Return the process described by the JSON object of ``document``; a wrong member raises ``fields``' error."""
        return cls(fields.integer("pid"), fields.integer("start_ticks"), fields.text("boot_id"))

    def document(self) -> dict[str, object]:
        """Return the identity as a JSON object."""
        return asdict(self)

    @property
    def lives(self) -> bool:
        """True while the process runs."""
        return Process.of(self.pid) == self

    def terminate(self) -> bool:
        """Ask it to end (SIGTERM); return False if it has ended, or is not this user's."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.lives:  # another process has its pid
                return False
            signal.pidfd_send_signal(fd, signal.SIGTERM)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    @property
    def is_of_this_boot(self) -> bool:
        """False if the host has rebooted since, or the process was on another host."""
        this = Process.of(os.getpid())
        return this is not None and this.boot_id == self.boot_id


#: (st_dev, st_ino) of open files.
OpenFiles = Collection[tuple[int, int]]


def open_files(pid: int) -> OpenFiles | None:
    """Return the files that a process has open, None if this user may not see them or it has ended."""
    found = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                status = entry.stat()
                found.add((status.st_dev, status.st_ino))
    except OSError as err:
        log.debug("open files of process %d: %s", pid, err)
        return None
    return found


def users_of(path: str) -> list[str]:
    """Return the processes that have a file or device open, as "qemu-system-x86 (pid 4711)", as far as /proc shows it.

    It reads only names in /proc, never the file itself, whose storage may hang.
    """
    return having_open(os.path.realpath(path))


def other_users_of(path: str, pid: int | None = None) -> list[str]:
    """Return what ``users_of`` does, without the process with that pid; None: this one."""
    own = f"(pid {os.getpid() if pid is None else pid})"
    return [user for user in users_of(path) if not user.endswith(own)]


def having_open(real_path: str) -> list[str]:
    """Return the processes that have the file or device of this name open, as ``users_of`` does, without a look at it.

    Looking up a symbolic link could hang as well.
    """
    users = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if real_path in map(_target, (process / "fd").iterdir()):
                users.append(f"{(process / 'comm').read_text(errors='replace').strip()} (pid {process.name})")
    return users


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - thousands of them
    except OSError:
        return ""  # it has just been closed


def refuse_lost_ends() -> None:
    """Raise VbackupError if it cannot be seen how a program ends; call before one is run whose exit status matters.

    If SIGCHLD is ignored, the kernel forgets how children have ended, and Python then says that it was with status 0.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise VbackupError(
            "This process ignores SIGCHLD, so a qemu-img that fails could not be told from one that succeeds: set it to"
            " SIG_DFL before vbackup is used."
        )
