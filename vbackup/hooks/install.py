"""Put the hook script where libvirt looks for it, take it away, and tell libvirt to look.

    /etc/libvirt/hooks/qemu.d/50-vbackup

libvirt runs every executable file of that directory (since 6.5), in the order of their names. A file that is not ours,
by its marker line, is left alone. vbackup.hooks.daemons sends the signal.
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

#: The sources' hooks/qemu: a symbolic link there, a file where vbackup is installed.
SCRIPT = Path(__file__).with_name("qemu")
#: How a line of every version of the script begins.
MARKER = b"# vbackup-libvirt-hook:"
RPATH = "etc/libvirt/hooks/qemu.d/50-vbackup"
MODE = 0o755
LIMIT_BYTES = 1024 * 1024
#: The script takes milliseconds.
TRIAL_TIMEOUT_S = 20.0
#: What libvirt would write to the script, with an operation that the script does nothing for.
TRIAL_XML = b"<domain><uuid>00000000-0000-4000-8000-000000000000</uuid></domain>"


class State(Enum):
    """What is in the script's place."""

    INSTALLED = "installed"
    OUTDATED = "outdated"  #: ours, but not as this vbackup would install it
    FOREIGN = "foreign"  #: somebody else's
    ABSENT = "absent"


@dataclass(frozen=True)
class Place:
    """Where the script belongs, below the root directory of this or of another system."""

    root: Path = Path("/")

    @property
    def path(self) -> Path:
        """Of the script."""
        return self.root / RPATH

    @property
    def is_here(self) -> bool:
        """True if that system is this one."""
        return self.root == Path("/")

    def state(self) -> State:
        """What is there. Raises StorageError."""
        with storage_errors(f"read {self.path}"):
            try:
                found = self.path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    return State.FOREIGN
                with self.path.open("rb") as file:
                    text = file.read(LIMIT_BYTES)
            except (FileNotFoundError, NotADirectoryError):
                return State.ABSENT
        if not any(line.startswith(MARKER) for line in text.splitlines()):
            return State.FOREIGN
        return State.INSTALLED if text == _script() and stat.S_IMODE(found.st_mode) == MODE else State.OUTDATED

    def install(self) -> bool:
        """Put the script there, or this vbackup's in place of another's; False if it was there already.

        Raises StorageError where somebody else's is there, libvirt is not installed, or the script does not run.
        """
        state = self._ours()
        if state is State.INSTALLED:
            return False
        etc = self.path.parents[2]
        with storage_errors(f"install {self.path}"):
            if not etc.is_dir():
                raise StorageError(f"Cannot install {self.path}: there is no {etc}; is libvirt installed?")
            for directory in (self.path.parent.parent, self.path.parent):
                _make_directory(directory)
            with _beside(self.path, _script()) as temporary:
                if self.is_here:
                    _try_out(temporary)
                temporary.replace(self.path)
            # Not before: were this killed in between, libvirt would call the temporary file for good.
            self.path.chmod(MODE)
            fsync(self.path.parent)
        return True

    def remove(self) -> bool:
        """Take the script away; False if there is none. Raises StorageError where it is somebody else's."""
        if self._ours() is State.ABSENT:
            return False
        with storage_errors(f"remove {self.path}"):
            self.path.unlink()
            with suppress(OSError):
                self.path.parent.rmdir()  # empty, as before install
        return True

    def _ours(self) -> State:
        state = self.state()
        if state is State.FOREIGN:
            raise StorageError(
                f"{self.path} is somebody else's: it has no line that begins with '{MARKER.decode()}'. It was left as"
                " it is; move it to another name if libvirt shall call both."
            )
        return state


def _script() -> bytes:
    with storage_errors("read the hook script that came with vbackup"):
        return SCRIPT.read_bytes()


def _make_directory(path: Path) -> None:
    try:
        path.mkdir()
    except FileExistsError:
        return
    path.chmod(MODE)  # whatever the umask is


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """A file with that content in the same directory, not executable; gone after the block, unless renamed in it."""
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
    """Run it once: libvirt starts no domain with a script that cannot run."""
    interpreter = script.read_bytes().splitlines()[0].decode().lstrip("#!").split()
    argv = [*interpreter, os.fspath(script), "trial", "-", "-", "-"]
    try:
        done = subprocess.run(argv, input=TRIAL_XML, capture_output=True, check=False, timeout=TRIAL_TIMEOUT_S)
    except subprocess.TimeoutExpired as err:
        raise StorageError(f"The hook script does not end ({' '.join(interpreter)}); it was not installed.") from err
    except OSError as err:
        raise StorageError(f"The hook script needs {interpreter[0]}: {err.strerror}; it was not installed.") from err
    if done.returncode != 0 or done.stdout or done.stderr:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
        raise StorageError(
            f"The hook script does not work with {interpreter[0]}: {lines[-1].rstrip('.')}. It was not installed."
        )
