"""The host on which a live restore has its files: this one (Here), or another (vbackup.operations.live_there).

live_restore, live_pull, live_resume and live_abort are the same for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from vbackup import files
from vbackup.domain import qemu_user
from vbackup.domain.host import Host
from vbackup.domain.qemu_user import QemuUser
from vbackup.errors import UnsuitableError
from vbackup.files import storage_errors
from vbackup.hooks import half_restored
from vbackup.images import destination, live_point
from vbackup.images.flatten import Layer
from vbackup.images.live_point import LivePoint, Serving
from vbackup.model import SecurityLabel
from vbackup.operations import live_files, restored_domain
from vbackup.operations.live_files import Writing
from vbackup.operations.restored_domain import Prepared
from vbackup.operations.restored_machine import Placed
from vbackup.report import Reporter
from vbackup.repository import live_state
from vbackup.repository.live_state import LiveState
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


class Place(Protocol):
    """That host. What it cannot do raises StorageError here, and RemoteError or LinkLostError there."""

    @property
    def is_missing(self) -> Callable[[str | Path], bool] | None:
        """Says whether that host has no such file; None: it is this one."""

    def absolute(self, output: Path) -> Path:
        """Return the output directory as an absolute path of that host. Raises UnsuitableError if it is not known."""

    def refuse_unfit(self, output: Path, others: Iterable[Path], repository: Repository) -> None:
        """Raise an error if files cannot be made there. ``others``: directories and files beside the output directory.

        ``repository`` is no place for them.
        """

    def refuse_existing(self, paths: Sequence[Path]) -> None:
        """Raise StorageError if one of them is there."""

    def refuse_closed(self, prepared: Prepared, output: Path) -> None:
        """Raise StorageError if QEMU could not enter the directory, unless ``restored_domain.prepare`` has done so."""

    def user_of(self, labels: Sequence[SecurityLabel]) -> QemuUser:
        """Return whom the QEMU of a domain with these labels will run as. Raises MalformedError."""

    def room(self, path: Path) -> tuple[int, Path, int]:
        """Return the device that a file would be on, the nearest directory that exists, and how much is free there."""

    def write(self, state: LiveState, what: Writing) -> None:
        """Write all files of the domain; live.json gets its name last. If it fails, nothing is left."""

    def machine(self, prepared: Prepared, machine: Sequence[Placed]) -> tuple[Placed, ...]:
        """Return the files of the machine with their places when the domain is defined."""

    def remove(self, state: LiveState) -> None:
        """Remove all files that the restore has made, and the output directory if it is empty then."""

    def locked(self, output: Path) -> AbstractContextManager[LiveState]:
        """Yield what live.json says, which nobody else works with during the block. Raises StorageError, BusyError."""

    def record(self, state: LiveState) -> None:
        """Write live.json again."""

    def forget(self, output: Path) -> None:
        """Remove live.json: the restore has ended."""

    def domain_xml(self, state: LiveState) -> str:
        """Return the XML that was restored."""

    def flush(self, image: Path) -> None:
        """Put an image on storage."""

    def serving(
        self,
        layers: Mapping[str, Sequence[Layer]],
        state: LiveState,
        user: QemuUser,
        locks: Sequence[int],
        reporter: Reporter,
    ) -> AbstractContextManager[Serving]:
        """Serve the disks to QEMU during the block. ``locks`` are descriptors with the locks of the backups."""

    def end_earlier(self, state: LiveState) -> None:
        """End what serves the disks for a dead run. Raises BusyError."""

    def refuse_start(self, state: LiveState, command: str, reporter: Reporter) -> None:
        """Let libvirt's hook script refuse to start the domain when its data is not served; ``command`` goes on."""

    def allow_start(self, uuid: str, *, is_undone: bool) -> None:
        """End that. ``is_undone``: what was recorded of the domain before counts again."""


def of(host: Host, *, stop: Stop | None = None) -> Place:
    """Return the place of the restores of a host. Raises UnsuitableError if SSH does not lead to it."""
    if host.is_local:
        return Here()
    if not host.has_link:
        raise UnsuitableError(
            f"{host.real_uri} is on another host, to which a live restore needs SSH: use a URI such as"
            " qemu+ssh://root@HOST/system, or run vbackup there."
        )
    from vbackup.operations.live_there import There  # most restores need none

    return There(host, stop=stop)


class Here:
    """The host of this process, if libvirt is there, too."""

    is_missing = None

    def absolute(self, output: Path) -> Path:
        """Start from the current directory."""
        return output.absolute()

    def refuse_unfit(self, output: Path, others: Iterable[Path], repository: Repository) -> None:
        """Refuse directories of the repository, and those that cannot be written."""
        repository.refuse_inside(output, *others)
        files.refuse_unwritable(output)

    def refuse_existing(self, paths: Sequence[Path]) -> None:
        """Look at each."""
        destination.refuse_existing(paths)

    def refuse_closed(self, prepared: Prepared, output: Path) -> None:
        """It was looked at."""

    def user_of(self, labels: Sequence[SecurityLabel]) -> QemuUser:
        """Look names up on this host."""
        return qemu_user.of(labels)

    def room(self, path: Path) -> tuple[int, Path, int]:
        """Look at the file system."""
        nearest = next(one for one in path.parents if one.exists())
        with storage_errors(f"read {nearest}"):
            device, status = nearest.stat().st_dev, os.statvfs(nearest)
        return device, nearest, status.f_bavail * status.f_frsize

    def write(self, state: LiveState, what: Writing) -> None:
        """Write them in temporary directories beside their places."""
        live_files.write(state, what)

    def machine(self, prepared: Prepared, machine: Sequence[Placed]) -> tuple[Placed, ...]:
        """Defining it has brought them there."""
        return restored_domain.place_machine(prepared, machine)

    def remove(self, state: LiveState) -> None:
        """Remove them."""
        live_files.remove(state)

    def locked(self, output: Path) -> AbstractContextManager[LiveState]:
        """Lock a file in the directory."""
        return live_state.locked(output)

    def record(self, state: LiveState) -> None:
        """Replace the file."""
        live_state.write(state)

    def forget(self, output: Path) -> None:
        """Remove the file."""
        live_state.remove(output)

    def domain_xml(self, state: LiveState) -> str:
        """Read the file."""
        path = state.output / "domain.xml"
        with storage_errors(f"read {path}"):
            return path.read_text()

    def flush(self, image: Path) -> None:
        """Flush the file."""
        with storage_errors(f"flush {image}"):
            files.fsync(image)

    def serving(
        self,
        layers: Mapping[str, Sequence[Layer]],
        state: LiveState,
        user: QemuUser,
        locks: Sequence[int],
        reporter: Reporter,
    ) -> AbstractContextManager[Serving]:
        """Let a daemon listen in the output directory; it survives this process."""
        return LivePoint(layers, state.socket, user=user, locks=locks, reporter=reporter)

    def end_earlier(self, state: LiveState) -> None:
        """End its daemon."""
        live_point.end_earlier(state.socket)

    def refuse_start(self, state: LiveState, command: str, reporter: Reporter) -> None:
        """Record it; this process is the one that serves the data."""
        work = half_restored.Work.LIVE
        half_restored.begin(state.uuid, state.away, domain=state.name, command=command, reporter=reporter, work=work)

    def allow_start(self, uuid: str, *, is_undone: bool) -> None:
        """Remove the record."""
        if is_undone:
            half_restored.take_back(uuid)
        else:
            half_restored.end(uuid)
