"""The files of schedules: where they belong, what is there, and how they come and go.

    UNITS/vbackup@.service ...                    the units that vbackup ships, where no package has installed them
    UNITS/vbackup@JOB.service.d/50-vbackup.conf   what the job needs
    UNITS/vbackup@JOB.timer.d/50-vbackup.conf     its times
    UNITS/timers.target.wants/vbackup@JOB.timer   a link that makes systemd start the timer with the machine, and
                              vbackup-boot@JOB.timer
    /etc/cron.d/vbackup-JOB                       in place of all these, where there is no systemd

UNITS is /etc/systemd/system, or ~/.config/systemd/user for a user. Files that are not vbackup's are left alone.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vbackup import files
from vbackup.errors import StorageError
from vbackup.schedule import cron, units

TEMPLATES = Path(__file__).with_name("templates")
#: The first words of the units that vbackup ships.
SHIPPED = "# Written for vbackup."
SERVICE, TIMER, BOOT_TIMER = "vbackup@.service", "vbackup@.timer", "vbackup-boot@.timer"
_DROP_IN = "50-vbackup.conf"
_JOB_DIRECTORY = re.compile(r"vbackup@([A-Za-z0-9][A-Za-z0-9_-]{0,62})\.timer\.d")
_JOB_FILE = re.compile(r"vbackup-([A-Za-z0-9][A-Za-z0-9_-]{0,62})")
#: Where packages install units, for the system.
_PACKAGED = ("usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_PACKAGED_USER = ("usr/local/lib/systemd/user", "usr/lib/systemd/user", "lib/systemd/user")
_LIMIT_BYTES = 256 * 1024
MODE = 0o644


class Way(Enum):
    """What starts the runs of a job."""

    SYSTEMD = "systemd"
    CRON = "cron"


class State(Enum):
    """What is at the path of a file."""

    INSTALLED = "installed"
    OUTDATED = "outdated"  #: vbackup's, but the configuration or vbackup has changed since
    FOREIGN = "foreign"  #: not vbackup's
    ABSENT = "absent"
    LEFT = "left"  #: of a job that the configuration does not have any more, or that has no times


@dataclass(frozen=True)
class Wanted:
    """A file or a link that belongs to the schedule of a job."""

    path: Path
    content: str  #: the text, or what the link points to
    is_link: bool = False

    def state(self) -> State:
        """Return what is there. Raises StorageError."""
        with files.storage_errors(f"read {self.path}"):
            try:
                if self.is_link:
                    there = os.readlink(self.path)  # noqa: PTH115 - as it is written
                    return State.INSTALLED if there == self.content else _of_link(there, self.path)
                text = files.read_regular(self.path, max_bytes=_LIMIT_BYTES).decode(errors="replace")
            except (FileNotFoundError, NotADirectoryError):
                return State.ABSENT
            except OSError:
                if self.path.is_symlink() or self.path.exists():
                    return State.FOREIGN
                raise
        if text == self.content:
            return State.INSTALLED
        return State.OUTDATED if text.startswith((units.MARKER, cron.MARKER, SHIPPED)) else State.FOREIGN

    def install(self) -> bool:
        """Put it there; return False if it was. Raises StorageError, also if something of somebody else is there."""
        state = self.own_state()
        if state is State.INSTALLED:
            return False
        with files.storage_errors(f"write {self.path}"):
            self._make_directories()
            if self.is_link:
                temporary = self.path.with_name(f".{self.path.name}.new")
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(self.content)
                temporary.replace(self.path)
            else:
                files.replace_text(self.path, self.content)
                self.path.chmod(MODE)
        return True

    def remove(self) -> bool:
        """Remove it, and directories that are empty then; return False if it was not there. Raises StorageError."""
        if self.own_state() is State.ABSENT:
            return False
        with files.storage_errors(f"remove {self.path}"):
            self.path.unlink()
            if self.path.parent.name.endswith((".d", ".wants")) and self.path.parent.name != "cron.d":
                with suppress(OSError):  # something else is in it
                    self.path.parent.rmdir()
        return True

    def own_state(self) -> State:
        """Return what is there. Raises StorageError if it is not vbackup's."""
        state = self.state()
        if state is State.FOREIGN:
            raise StorageError(
                f"{self.path} is not vbackup's, so it was not changed: rename it, or remove it if nobody needs it."
            )
        return state

    def _make_directories(self) -> None:
        for missing in reversed([one for one in self.path.parents if not one.exists()]):
            missing.mkdir()
            missing.chmod(0o755)  # independent of the umask


def _of_link(there: str, path: Path) -> State:
    names = (TIMER, BOOT_TIMER, path.name)
    return State.OUTDATED if Path(there).name in names else State.FOREIGN


@dataclass(frozen=True)
class Place:
    """Where the files of schedules belong: in this system or in one below a root directory, or a user's."""

    way: Way
    root: Path = Path("/")
    home: Path | None = None  #: a user's directory of configuration; None: the system's

    @property
    def unit_directory(self) -> Path:
        """The directory of units."""
        return self.root / "etc/systemd/system" if self.home is None else self.home / "systemd/user"

    def jobs(self) -> tuple[str, ...]:
        """Return the jobs that have a schedule here, sorted. Raises StorageError."""
        directory, pattern = self.unit_directory, _JOB_DIRECTORY
        if self.way is Way.CRON:
            directory, pattern = self.root / "etc/cron.d", _JOB_FILE
        with files.storage_errors(f"read {directory}"):
            if not directory.is_dir():
                return ()
            found = [match[1] for path in directory.iterdir() if (match := pattern.fullmatch(path.name))]
        return tuple(sorted(found))

    def wanted(self, needs: units.Needs, *, host: str) -> tuple[Wanted, ...]:
        """Return the files of a job, in the order in which they are written. Raises UsageError, StorageError."""
        if self.way is Way.CRON:
            return (Wanted(self.root / "etc/cron.d" / cron.name(needs.job), cron.text(needs, host=host)),)
        return (
            *self.templates(),
            Wanted(self._drop_in(needs.job, "service"), units.service(needs)),
            Wanted(self._drop_in(needs.job, "timer"), units.timer(needs)),
            *self._links(needs.job),
        )

    def written(self, job: str) -> tuple[Wanted, ...]:
        """Return the files of a job as they are removed, without those that all jobs share."""
        if self.way is Way.CRON:
            return (Wanted(self.root / "etc/cron.d" / cron.name(job), cron.MARKER),)
        drop_ins = (Wanted(self._drop_in(job, kind), units.MARKER) for kind in ("timer", "service"))
        return (*self._links(job), *drop_ins)

    def templates(self) -> tuple[Wanted, ...]:
        """Return the units that all jobs share and that no package has installed. Raises StorageError."""
        return tuple(
            Wanted(self.unit_directory / name, _shipped(name, is_user=self.home is not None))
            for name in (SERVICE, TIMER, BOOT_TIMER)
            if self._packaged(name) is None
        )

    def _packaged(self, name: str) -> Path | None:
        """Return where a package has installed a unit, as this system names it."""
        for directory in _PACKAGED if self.home is None else _PACKAGED_USER:
            if (self.root / directory / name).is_file():
                return Path("/") / directory / name
        return None

    def _links(self, job: str) -> tuple[Wanted, ...]:
        below = Path("/etc/systemd/system") if self.home is None else self.unit_directory
        return tuple(
            Wanted(
                self.unit_directory / "timers.target.wants" / name.replace("@", f"@{job}"),
                os.fspath(self._packaged(name) or below / name),
                is_link=True,
            )
            for name in (TIMER, BOOT_TIMER)
        )

    def _drop_in(self, job: str, kind: str) -> Path:
        return self.unit_directory / f"vbackup@{job}.{kind}.d" / _DROP_IN


def _shipped(name: str, *, is_user: bool) -> str:
    path = TEMPLATES / "user" / name if is_user and name == SERVICE else TEMPLATES / name
    with files.storage_errors("read a unit that comes with vbackup"):
        return path.read_text(encoding="utf-8")
