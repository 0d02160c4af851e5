"""Install the hook script where libvirt looks for it, and remove it.

    /etc/libvirt/hooks/qemu.d/50-vbackup

libvirt (since 6.5) runs every executable file in that directory, in the order of their names. A file without the marker
line of vbackup's script is left alone. vbackup.hooks.daemons makes libvirt look.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.files import fsync, storage_errors

#: hooks/qemu: a symbolic link to it in the source tree, a file where vbackup is installed.
SCRIPT = Path(__file__).with_name("qemu")
#: The beginning of a line that every version of the script has.
MARKER = b"# vbackup-libvirt-hook:"
RPATH = "etc/libvirt/hooks/qemu.d/50-vbackup"
MODE = 0o755
LIMIT_BYTES = 1024 * 1024
#: The script usually takes milliseconds.
TRIAL_TIMEOUT_S = 20.0
#: What libvirt would write to the script; the operation of the trial, a dash, makes the script do nothing.
TRIAL_XML = b"<domain><uuid>00000000-0000-4000-8000-000000000000</uuid></domain>"


class State(Enum):
    """What is at the path of the script."""

    INSTALLED = "installed"
    OUTDATED = "outdated"  #: vbackup's, but not as this version installs it
    FOREIGN = "foreign"  #: not vbackup's
    ABSENT = "absent"


@dataclass(frozen=True)
class Place:
    """Where the script belongs, below the root directory of this or another system."""

    root: Path = Path("/")

    @property
    def path(self) -> Path:
        """Path of the script."""
        return self.root / RPATH

    @property
    def is_here(self) -> bool:
        """True if the script belongs to this system."""
        return self.root == Path("/")

    def state(self) -> State:
        """Return what is at the path. Raises StorageError, also if there is no system below the root directory."""
        with storage_errors(f"read {self.path}"):
            if not self.root.is_dir():
                raise StorageError(
                    f"Cannot read {self.path}: the root directory {self.root} does not exist; check --root."
                )
            try:
                entry = self.path.lstat()
                if not stat.S_ISREG(entry.st_mode):
                    return State.FOREIGN
                with self.path.open("rb") as file:
                    text = file.read(LIMIT_BYTES)
            except (FileNotFoundError, NotADirectoryError):
                return State.ABSENT
        if not any(line.startswith(MARKER) for line in text.splitlines()):
            return State.FOREIGN
        return State.INSTALLED if text == _script() and stat.S_IMODE(entry.st_mode) == MODE else State.OUTDATED

    def install(self) -> bool:
        """Install the script, or replace another version of it; return False if it was installed already.

        Raises StorageError if the file there is not vbackup's, libvirt is not installed, or the script does not run.
        """
        state = self._own_state()
        if state is State.INSTALLED:
            return False
        etc = self.path.parents[2]
        with storage_errors(f"install {self.path}"):
            if not etc.is_dir():
                raise StorageError(f"Cannot install {self.path}: {etc} does not exist; is libvirt installed?")
            for directory in (self.path.parent.parent, self.path.parent):
                _make_directory(directory)
            with _beside(self.path, _script()) as temporary:
                if self.is_here:
                    _try_out(temporary)
                temporary.replace(self.path)
            # Not earlier: if this process were killed before the rename, libvirt would keep running the temporary file.
            self.path.chmod(MODE)
            fsync(self.path.parent)
        return True

    def remove(self) -> bool:
        """Remove the script; return False if it was not installed. Raises StorageError if it is not vbackup's."""
        if self._own_state() is State.ABSENT:
            return False
        with storage_errors(f"remove {self.path}"):
            self.path.unlink()
            with suppress(OSError):
                self.path.parent.rmdir()  # if it is empty, as before the installation
        return True

    def _own_state(self) -> State:
        """Return what is at the path. Raises StorageError if it is not vbackup's."""
        state = self.state()
        if state is State.FOREIGN:
            raise StorageError(
                f"{self.path} is not vbackup's: no line begins with '{MARKER.decode()}'. It was not changed; rename it"
                " if libvirt should run both."
            )
        return state


def _script() -> bytes:
    with storage_errors("read the hook script that comes with vbackup"):
        return SCRIPT.read_bytes()


def _make_directory(path: Path) -> None:
    try:
        path.mkdir()
    except FileExistsError:
        return
    path.chmod(MODE)  # independent of the umask


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a new file in the same directory, not executable; remove it after the block unless it was renamed."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _try_out(script: Path) -> None:
    """Run the script once: libvirt starts no domain if the script cannot run. Raises StorageError."""
    interpreter = script.read_bytes().splitlines()[0].decode().lstrip("#!").split()
    argv = [*interpreter, os.fspath(script), "trial", "-", "-", "-"]
    try:
        completed = subprocess.run(argv, input=TRIAL_XML, capture_output=True, check=False, timeout=TRIAL_TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise StorageError(f"The hook script does not end ({' '.join(interpreter)}); it was not installed.") from err
    except OSError as err:
        raise StorageError(f"The hook script needs {interpreter[0]}: {err.strerror}; it was not installed.") from err
    if completed.returncode != 0 or completed.stdout or completed.stderr:
        lines = completed.stderr.decode(errors="replace").strip().splitlines() or [f"status {completed.returncode}"]
        raise StorageError(
            f"The hook script does not work with {interpreter[0]}: {lines[-1].rstrip('.')}. It was not installed."
        )
