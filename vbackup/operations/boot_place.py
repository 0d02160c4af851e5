"""The host on which a copy of a domain boots: this one (Here), or another (vbackup.operations.boot_there).

vbackup.operations.boot_test is the same for both.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vbackup import files
from vbackup.domain import defining, qemu_user
from vbackup.domain.boot_console import BootConsoles
from vbackup.domain.boot_guard import BootGuard
from vbackup.domain.host import Host
from vbackup.errors import UnsuitableError
from vbackup.files import storage_errors
from vbackup.images import throwaway
from vbackup.images.flatten import Layer
from vbackup.images.opened_point import OpenedPoint
from vbackup.model import Backup
from vbackup.names import BOOT_COPY_PREFIX
from vbackup.operations import boot_tpm
from vbackup.operations.boot_tpm import Given
from vbackup.report import Reporter
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: A kernel with its initial RAM disk has some 100 MB.
MAX_BOOT_FILE_BYTES = 1024 * 1024 * 1024
#: The socket of the disks, in the directory of the copy.
SOCKET = "nbd"


class Exported(Protocol):
    """The disks of the copy, which a storage daemon serves."""

    def wait(self, stop: Stop, *, timeout_s: float) -> None:
        """Return after that time, or when a stop is requested.

        Raises StorageDaemonGoneError if the daemon ends before, LinkLostError, RemoteError, and NoSpaceError if what
        the copy writes takes too much of another host.
        """


class Workplace(Protocol):
    """What the host has for one copy. What fails raises StorageError here, and RemoteError or LinkLostError there."""

    @property
    def directory(self) -> Path:
        """The directory for the sockets and files of the copy, on that host."""

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Put a file for QEMU into the directory; ``write`` makes it at a path of this host."""

    def copy_host_file(self, path: Path, name: str) -> str | None:
        """Copy a file of that host into the directory; returns None, or why that is not done, as a part of a sentence.

        The path comes from the repository, and what is read goes to a guest whose console is kept there: so it has to
        be a file that is no secret, or that QEMU's user has anyway.
        """

    def real_path(self, path: str) -> str:
        """Return a path of that host without symbolic links."""

    def tpm(
        self, backup: Backup, definition: str, *, repository: Repository, stop: Stop
    ) -> AbstractContextManager[Given]:
        """Let libvirt have a copy of the TPM's state during the block, as ``boot_tpm.given`` does."""

    def consoles(self, paths: Sequence[str]) -> AbstractContextManager[BootConsoles]:
        """Listen at these paths of that host during the block."""

    def exported(self, layers: Mapping[str, Sequence[Layer]]) -> AbstractContextManager[Exported]:
        """Export the disks at ``SOCKET`` for the copy alone during the block; what it writes is thrown away."""

    def act(self) -> None:
        """Let the copy be ended with the workplace: libvirt did not, or it is not known."""


class BootPlace(Protocol):
    """That host."""

    def workplace(self, uuid: str) -> AbstractContextManager[Workplace]:
        """Yield what the host has for the copy with this UUID; nothing of it is left, also if vbackup is killed."""


class Here:
    """The host of this process, if libvirt is there, too. Making it raises UnsuitableError."""

    def __init__(self, host: Host, reporter: Reporter) -> None:
        self._host, self._reporter = host, reporter
        self._owner = _owner(host)

    @contextmanager
    def workplace(self, uuid: str) -> Iterator[Workplace]:
        """Make a directory in /run, and start the process that removes it if this one is killed."""
        directory = _directory(uuid)
        of_tpm = boot_tpm.directory(self._host, uuid)
        places = [directory] if of_tpm is None else [directory, of_tpm]
        with BootGuard(uuid=uuid, directories=places) as guard, _made(directory, self._owner):
            yield WorkplaceHere(uuid, directory, self._host, self._owner, guard, self._reporter)


@dataclass(frozen=True)
class WorkplaceHere:
    """What this host has for a copy."""

    uuid: str
    directory: Path
    host: Host
    owner: tuple[int, int] | None  #: user and group id of QEMU, if they are not those of this process
    guard: BootGuard
    reporter: Reporter

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Write it at its place."""
        write(self.directory / name)
        self._give(self.directory / name)

    def copy_host_file(self, path: Path, name: str) -> str | None:
        """Look at the file that was opened."""
        try:
            with os.fdopen(files.open_regular(path.resolve()), "rb") as file:
                status = os.fstat(file.fileno())
                why = why_not_given(status.st_mode, status.st_uid, status.st_size, path, owner=self.owner)
                if why is not None:
                    return why
                data = file.read()
        except (OSError, ValueError, RuntimeError) as err:  # RuntimeError: links in a circle
            return f"cannot be read here ({err.strerror if isinstance(err, OSError) else err}): copy it to that path"
        self.put(name, lambda target: _write(target, data))
        return None

    def real_path(self, path: str) -> str:
        """Ask the kernel."""
        return os.path.realpath(path)

    def tpm(
        self, backup: Backup, definition: str, *, repository: Repository, stop: Stop
    ) -> AbstractContextManager[Given]:
        """Put it where libvirt looks for it."""
        return boot_tpm.given(
            backup, definition, self.uuid, self.directory, host=self.host, repository=repository, stop=stop
        )

    def consoles(self, paths: Sequence[str]) -> AbstractContextManager[BootConsoles]:
        """Listen at them."""
        return BootConsoles([Path(path) for path in paths], owner=self.owner)

    @contextmanager
    def exported(self, layers: Mapping[str, Sequence[Layer]]) -> Iterator[Exported]:
        """Start a storage daemon."""
        overlays = throwaway.default_directory()
        files.refuse_unwritable(overlays)
        with OpenedPoint(layers, reporter=self.reporter) as point:
            for dev in layers:
                throwaway.take_writes(point, dev, overlays)
            path = self.directory / SOCKET
            point.listen(path)
            with storage_errors(f"give QEMU the socket {path}"):
                path.chmod(0o600)
                if self.owner is not None:
                    os.chown(path, *self.owner)
            for dev in layers:
                point.export_nbd(dev, is_writable=True)
            yield point

    def act(self) -> None:
        """Let the guard do it."""
        self.guard.act()

    def _give(self, path: Path) -> None:
        if self.owner is not None:
            with storage_errors(f"give QEMU {path}"):
                os.chown(path, *self.owner)


def why_not_given(
    mode: int, uid: int, size_bytes: int, path: Path, *, owner: tuple[int, int] | None, host: str = ""
) -> str | None:
    """Return why a guest does not get a copy of a file of its host, None if it may have one.

    ``owner``: user and group id of QEMU; ``host``: what another host is called.
    """
    if not mode & stat.S_IROTH and not (owner is not None and uid == owner[0]):
        on = f" on {host}" if host else ""
        return f"which not everybody may read; run{on}: chmod o+r {shlex.quote(str(path))}"
    if size_bytes > MAX_BOOT_FILE_BYTES:
        return f"which is larger than any: {size_bytes} bytes"
    return None


def _write(path: Path, data: bytes) -> None:
    with storage_errors(f"write {path}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)


def _owner(host: Host) -> tuple[int, int] | None:
    """Return user and group id of QEMU if they are not those of this process. Raises UnsuitableError."""
    user = qemu_user.of(defining.of(host).labels)
    if user.uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise UnsuitableError(
            f"The QEMU of {host.real_uri} runs as user {files.user_name(user.uid)}, and only root can give that user"
            " the disks of the copy: run vbackup as root, or with -c qemu:///session."
        )
    return user.uid, user.gid


def _directory(uuid: str) -> Path:
    """Return the path for the sockets and files of a copy: short enough for sockets, and gone after a boot."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    parent = "/run" if os.geteuid() == 0 else runtime if runtime.startswith("/") else "/tmp"  # noqa: S108 - unguessable
    return Path(parent) / f"{BOOT_COPY_PREFIX}{uuid}"


@contextmanager
def _made(directory: Path, owner: tuple[int, int] | None) -> Iterator[None]:
    """Make a directory that QEMU's group can enter, if that is another one, and remove it with its content."""
    with storage_errors(f"create {directory}"):
        directory.mkdir(mode=0o700)
    try:
        if owner is not None:
            with storage_errors(f"let QEMU enter {directory}"):
                os.chown(directory, -1, owner[1])
                directory.chmod(0o710)
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
