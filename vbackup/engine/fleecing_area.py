"""Where a fleecing area is: a directory of this host, or of the hypervisor that a link leads to."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vbackup.errors import FdsNotPassedError, NoSpaceError, RemoteError, StorageError, UnsuitableError
from vbackup.files import nameless, storage_errors
from vbackup.images import targets
from vbackup.qemu import qemu_img
from vbackup.qemu.monitor import Monitor

if TYPE_CHECKING:
    from vbackup.remote.link import Link

#: Where files without a name are made on a hypervisor, unless the user names a directory.
REMOTE_DIRECTORY = Path("/var/tmp")  # noqa: S108 - nobody can name them


class Area(Protocol):
    """A directory in which QEMU saves what the guest overwrites, in images without names."""

    @property
    def place(self) -> str:
        """What it is called in messages."""

    @property
    def local_path(self) -> Path | None:
        """Its path, if it is on this host."""

    def free_bytes(self) -> int:
        """Return the free space in bytes. Raises StorageError if it is no directory, LinkLostError."""

    def make_image(self, monitor: Monitor, node_name: str, size_bytes: int) -> str:
        """Make an image for a node of that name and pass it to QEMU; returns the file name by which QEMU opens it.

        Raises UnsuitableError if the connection carries no descriptors, StorageError, NoSpaceError, LinkLostError.
        """

    def fault(self) -> OSError | None:
        """Return why nothing can be written there now, as far as that shows; None if it can."""


@dataclass(frozen=True)
class LocalArea:
    """A directory of this host."""

    directory: Path

    @property
    def place(self) -> str:
        """Its path."""
        return os.fspath(self.directory)

    @property
    def local_path(self) -> Path | None:
        """Its path."""
        return self.directory

    def free_bytes(self) -> int:
        """Ask the file system."""
        with storage_errors(f"use {self.directory} for fleecing"):
            if not self.directory.is_dir():
                raise StorageError(f"{self.directory} is not a directory, so nothing can be saved there.")
            found = os.statvfs(self.directory)
        return found.f_bavail * found.f_frsize

    def make_image(self, monitor: Monitor, node_name: str, size_bytes: int) -> str:
        """Pass a descriptor."""
        what = f"make a fleecing image in {self.directory}"
        with storage_errors(what):
            fd = nameless(self.directory)
        try:
            qemu_img.create_in(fd, size_bytes, what=what)
            return targets.pass_fd(monitor, fd, node_name)
        except FdsNotPassedError as err:
            raise UnsuitableError(
                f"A fleecing area needs a connection that can carry file descriptors, and this one cannot ({err}) Run"
                " vbackup on the host of the domain."
            ) from err
        finally:
            os.close(fd)

    def fault(self) -> OSError | None:
        """Try it: what QEMU met does not show in this process otherwise."""
        try:
            fd = nameless(self.directory)
            try:
                os.write(fd, bytes(1 << 16))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as err:
            return err
        return None


@dataclass(frozen=True)
class RemoteArea:
    """A directory of the hypervisor; the helper there makes the images."""

    link: Link
    uuid: str  #: of the domain
    directory: str

    @property
    def place(self) -> str:
        """Its path, and the host."""
        return f"{self.directory} on {self.link.host}"

    @property
    def local_path(self) -> Path | None:
        """Return None."""
        return None

    def free_bytes(self) -> int:
        """Ask the helper."""
        try:
            return self.link.free_bytes(self.directory)
        except RemoteError as err:
            raise StorageError(str(err)) from err

    def make_image(self, monitor: Monitor, node_name: str, size_bytes: int) -> str:
        """Let the helper pass the descriptor."""
        try:
            return f"/dev/fdset/{self.link.pass_file(self.uuid, node_name, self.directory, size_bytes)}"
        except RemoteError as err:
            kind = NoSpaceError if err.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise kind(str(err)) from err

    def fault(self) -> OSError | None:
        """Return None: its free space is all that is known."""
        return None
