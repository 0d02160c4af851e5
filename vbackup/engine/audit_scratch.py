"""Where QEMU writes what an audit reads: a directory of this host, or of the hypervisor that a link leads to.

The images are files without names of this host, which vbackup fills and reads. QEMU on another host gets copies of
them, which the helper there makes, and what it has written is fetched when the jobs have ended.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vbackup.errors import (
    FdsNotNeededError,
    FdsNotPassedError,
    NoSpaceError,
    RemoteError,
    StorageError,
    UnsuitableError,
)
from vbackup.files import storage_errors
from vbackup.images import targets
from vbackup.model import NodeBitmap, SecurityLabel
from vbackup.names import Naming
from vbackup.qemu.monitor import Monitor
from vbackup.remote.link import Link
from vbackup.remote.nameless import NamelessFile


@dataclass(frozen=True)
class Room:
    """A directory that what is read has to fit into."""

    place: str
    free_bytes: int
    remedy: str  #: completes "give it ..."


class Scratch(Protocol):
    """The directory."""

    @property
    def place(self) -> str:
        """What it is called in messages."""

    @property
    def here(self) -> Path:
        """The directory of this host for the files."""

    def free_bytes(self) -> int:
        """Return the free space where QEMU writes. Raises StorageError if it is no directory, LinkLostError."""

    def rooms(self) -> list[Room]:
        """Return every directory that takes space. Raises as ``free_bytes`` does."""

    def lend(self, monitor: Monitor, fd: int, node_name: str, *, check: Callable[[], None]) -> str:
        """Let QEMU use a file for a node of that name; returns the file name by which QEMU opens it.

        Raises UnsuitableError if the connection carries no descriptors, StorageError, NoSpaceError, LinkLostError, and
        what ``check`` raises.
        """

    def fetch(self, fd: int, *, check: Callable[[], None]) -> int:
        """Bring what QEMU has written into the file, when it has closed it; returns how many bytes were transferred.

        Raises StorageError, NoSpaceError, LinkLostError, and what ``check`` raises.
        """

    def guarded(self, naming: Naming, bitmaps: Sequence[NodeBitmap]) -> AbstractContextManager[None]:
        """Undo in QEMU what the block leaves there if the link to its host is lost. Raises LinkLostError."""

    def denied(self, labels: Sequence[SecurityLabel], reason: str) -> str:
        """Return why QEMU may not open a file there, and the remedy; ``reason``: what QEMU says."""

    def close(self) -> None:
        """Close what is on the other host."""


#: What helps where too little space is, and where vbackup cannot choose the directory.
_SMALLER = "a smaller --sample"
REMEDY = f"{_SMALLER}, or another directory with --scratch"


@dataclass(frozen=True)
class LocalScratch:
    """A directory of this host."""

    here: Path

    @property
    def place(self) -> str:
        """Its path."""
        return os.fspath(self.here)

    def free_bytes(self) -> int:
        """Ask the file system."""
        return _free_bytes(self.here)

    def rooms(self) -> list[Room]:
        """Return this one."""
        return [Room(self.place, self.free_bytes(), REMEDY)]

    def lend(self, monitor: Monitor, fd: int, node_name: str, *, check: Callable[[], None]) -> str:
        """Pass the descriptor."""
        try:
            return targets.pass_fd(monitor, fd, node_name)
        except FdsNotNeededError:
            return f"/proc/{os.getpid()}/fd/{fd}"  # a storage daemon, which is our child
        except FdsNotPassedError as err:
            raise UnsuitableError(
                f"An audit needs a connection that can carry file descriptors, or one by SSH, and this one is neither"
                f" ({err}) Run vbackup on the host of the domain, or use a URI such as qemu+ssh://root@HOST/system."
            ) from err

    def fetch(self, fd: int, *, check: Callable[[], None]) -> int:
        """Do nothing: QEMU has written to this very file."""
        return 0

    def guarded(self, naming: Naming, bitmaps: Sequence[NodeBitmap]) -> AbstractContextManager[None]:
        """Do nothing: there is no link."""
        return nullcontext()

    def denied(self, labels: Sequence[SecurityLabel], reason: str) -> str:
        """Look at what confines QEMU."""
        return targets.denied(self.here, labels, by_descriptor=True)

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class RemoteScratch:
    """A directory of the hypervisor."""

    link: Link
    uuid: str  #: of the domain
    directory: str  #: there
    here: Path
    is_running: (
        bool  #: the domain has a QEMU; else a storage daemon there, with the rights of the helper, has the disks
    )
    _there: dict[int, NamelessFile] = field(default_factory=dict)  #: by the descriptor of the file here

    @property
    def place(self) -> str:
        """Its path, and the host."""
        return f"{self.directory} on {self.link.host}"

    def free_bytes(self) -> int:
        """Ask the helper."""
        with self._errors():
            return self.link.free_bytes(self.directory)

    def rooms(self) -> list[Room]:
        """Return both directories."""
        return [
            Room(self.place, self.free_bytes(), REMEDY),
            Room(os.fspath(self.here), _free_bytes(self.here), _SMALLER),
        ]

    def lend(self, monitor: Monitor, fd: int, node_name: str, *, check: Callable[[], None]) -> str:
        """Send the file, and let the helper pass its descriptor."""
        with self._errors():
            self._there[fd] = there = NamelessFile.make(self.link, self.directory)
            there.send(fd, check=check)
            return there.give(self.uuid, node_name) if self.is_running else there.path

    def fetch(self, fd: int, *, check: Callable[[], None]) -> int:
        """Copy it."""
        with self._errors(), storage_errors(f"write to {self.here}"):
            return self._there[fd].fetch(fd, check=check)

    def guarded(self, naming: Naming, bitmaps: Sequence[NodeBitmap]) -> AbstractContextManager[None]:
        """Let the helper do it. A storage daemon ends with the link."""
        if not self.is_running:
            return nullcontext()
        return self.link.guarded(self.uuid, jobs=naming.prefix, nodes=naming.prefix, bitmaps=bitmaps)

    def denied(self, labels: Sequence[SecurityLabel], reason: str) -> str:
        """Say where to look."""
        return (
            f"QEMU may not use a file in {self.place}: {reason.rstrip('.')}. Look at what confines it there (AppArmor,"
            " SELinux), or use another directory with --scratch."
        )

    def close(self) -> None:
        """Close the files there, which are gone then."""
        for one in self._there.values():
            one.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RemoteError as err:
            kind = NoSpaceError if err.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise kind(str(err)) from err


def _free_bytes(directory: Path) -> int:
    with storage_errors(f"use {directory} for the audit"):
        if not directory.is_dir():
            raise StorageError(f"{directory} is not a directory, so the audit cannot use it.")
        found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
