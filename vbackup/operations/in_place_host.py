"""The host with the images that a restore in place writes: this one (Here), or another (operations.in_place_there).

restore_in_place, full_in_place and in_place_end are the same for both.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vbackup.domain import access
from vbackup.domain.host import DomainHandle
from vbackup.engine import restored_checkpoint
from vbackup.engine.restored_checkpoint import RestoredImage
from vbackup.errors import ChainError, VbackupError, domain_argument
from vbackup.files import storage_errors
from vbackup.hooks import half_restored
from vbackup.hooks.marks import Work, offline_mark
from vbackup.images.replacement import Replacement
from vbackup.images.restoring import Restoring
from vbackup.model import Disk, ImageFormat, SourceType
from vbackup.operations import rollback
from vbackup.operations.rollback import Rollback, RollbackRequest
from vbackup.qemu import image_lock, qcow2
from vbackup.qemu.backing_chain import Image
from vbackup.report import Reporter
from vbackup.repository.chosen import Chosen
from vbackup.repository.in_place_journal import Seen
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class NewImage:
    """An image that takes the place of another one."""

    dev: str
    replacement: Replacement
    image_format: ImageFormat


@dataclass(frozen=True)
class Status:
    """What the kernel says of a file, or of what a symbolic link leads to."""

    mode: int
    identity: tuple[int, int]  #: the same for all names of one file
    stored_bytes: int  #: what it takes on storage


@dataclass(frozen=True)
class Restore:
    """What a restore in place works with."""

    point: Chosen
    repository: Repository
    reporter: Reporter
    stop: Stop


class Place(Protocol):
    """That host. Besides OSError, another host raises RemoteError, and LinkLostError when the link to it is lost."""

    @property
    def host(self) -> str | None:
        """Name of the host in a journal, None for this one."""

    @property
    def uri(self) -> str | None:
        """URI of its libvirt, for a command that has to name it; None for this host."""

    @property
    def on_host(self) -> str:
        """Says in messages where a file is, with a blank in front; "" for this host."""

    def errors(self, what: str) -> AbstractContextManager[None]:
        """Translate OSError as vbackup.files.storage_errors does; says on which host, and what a user there lacks."""

    # files

    def path_of(self, disk: Disk) -> Path | None:
        """Return the path of a disk's image without symbolic links, None if it is not in a file or block device."""

    def replacement(self, path: Path, backup: str) -> Replacement:
        """Return what replaces an image."""

    def seen(self, path: Path) -> Seen | None:
        """Return what a file, or a symbolic link, is like; None if there is none. Raises OSError."""

    def status(self, path: Path) -> Status | None:
        """Return what a file is; None if there is none. Raises OSError."""

    def header(self, path: Path) -> qcow2.Header:
        """Return the header of a qcow2 image. Raises ChainError if it has none that QEMU accepts, OSError."""

    def doubt(self, image: Image) -> str | None:
        """Return what keeps us from knowing that no other host has the image open, as vbackup.domain.access.doubt."""

    def room(self, directory: Path) -> tuple[int, int]:
        """Return the device of a directory, and the free bytes on it. Raises OSError, also if it is not writable."""

    def held(self, paths: Sequence[Path]) -> AbstractContextManager[None]:
        """Keep every QEMU there from opening these files during the block. Raises BusyError, StorageError."""

    # the restore

    def marked(self) -> AbstractContextManager[None]:
        """Let libvirt's hook script refuse to start the domain during the block. Raises BusyError."""

    def rollback(self, request: RollbackRequest, what: Restore) -> AbstractContextManager[Rollback]:
        """Find out which disks can be rolled back, as vbackup.operations.rollback.prepared."""

    def make(self, images: Sequence[NewImage], what: Restore, *, checkpoint: bool, speed_bytes_s: int | None) -> None:
        """Make the new images (``Replacement.new``), and check them; with ``checkpoint``, the next backup starts there.

        Raises what Restoring.write raises; what it has made is there then, or goes with the link.
        """

    def elsewhere(self, backup: str, *, option: str) -> str:
        """Return how else the disks can be restored, as a sentence. ``option`` is for a command of this host."""

    def half_restored(self, devs: Sequence[str], *, command: str, reporter: Reporter) -> None:
        """Record for the hook script that these disks are about to be written; ``command`` restores them."""

    def whole(self, devs: Collection[str]) -> None:
        """Record that these disks are restored. Never fails, unless the link is lost."""


class Here:
    """The host that vbackup runs on."""

    host: str | None = None
    uri: str | None = None
    on_host = ""

    def __init__(self, handle: DomainHandle) -> None:
        self._handle = handle

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Raise them. EPERM means to a user who is not root that root may."""
        with storage_errors(what):
            try:
                yield
            except PermissionError as err:
                if err.errno == errno.EPERM and os.geteuid() != 0:
                    raise PermissionError(errno.EACCES, err.strerror) from err
                raise

    def path_of(self, disk: Disk) -> Path | None:
        """Look up volumes. A path of a libvirt that is not on this host is none."""
        path = named_path(disk, self._handle)
        return None if path is None or not self._handle.host.is_local else Path(os.path.realpath(path))

    def replacement(self, path: Path, backup: str) -> Replacement:
        """Return it."""
        return Replacement(path, backup)

    def seen(self, path: Path) -> Seen | None:
        """Ask the kernel."""
        return Seen.of(path)

    def status(self, path: Path) -> Status | None:
        """Ask the kernel."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return Status(found.st_mode, (found.st_dev, found.st_ino), found.st_blocks * 512)

    def header(self, path: Path) -> qcow2.Header:
        """Read it."""
        try:
            return qcow2.header_of_source(path)
        except ChainError as err:
            if isinstance(err.__cause__, OSError):
                raise err.__cause__ from None
            raise

    def doubt(self, image: Image) -> str | None:
        """Look at its file system."""
        return access.doubt(image)

    def room(self, directory: Path) -> tuple[int, int]:
        """Ask the kernel."""
        status, room = directory.stat(), os.statvfs(directory)
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(directory / "image"))
        return status.st_dev, room.f_bavail * room.f_frsize

    def held(self, paths: Sequence[Path]) -> AbstractContextManager[None]:
        """Lock them."""
        return image_lock.held(paths)

    def marked(self) -> AbstractContextManager[None]:
        """Set the mark."""
        return offline_mark(self._handle.uuid, Work.RESTORE)

    def rollback(self, request: RollbackRequest, what: Restore) -> AbstractContextManager[Rollback]:
        """Open the images in a storage daemon, which reads the repository, too."""
        return rollback.prepared(
            request,
            self._handle,
            what.point,
            repository=what.repository,
            reporter=what.reporter,
            stop=what.stop,
        )

    def make(self, images: Sequence[NewImage], what: Restore, *, checkpoint: bool, speed_bytes_s: int | None) -> None:
        """Write them beside the old ones."""
        with tempfile.TemporaryDirectory(prefix="vbackup-") as scratch:
            write = Restoring(
                what.repository, what.reporter, what.stop, Path(scratch), speed_bytes_s=speed_bytes_s
            ).write
            for one in images:
                write(what.point.chains[one.dev], one.replacement.new, one.image_format)
        if checkpoint:
            restored_checkpoint.add(
                [
                    RestoredImage(one.dev, what.point.choice.disks[one.dev], one.replacement.new, one.replacement.path)
                    for one in images
                    if one.image_format is ImageFormat.QCOW2
                ],
                uuid=self._handle.uuid,
                repository=what.repository,
                reporter=what.reporter,
                stop=what.stop,
            )

    def elsewhere(self, backup: str, *, option: str) -> str:
        """Return the command for a directory."""
        return (
            f"Restore it to another place: vbackup restore {domain_argument(self._handle.name)} --backup={backup}"
            f" --output=DIR{option}."
        )

    def half_restored(self, devs: Sequence[str], *, command: str, reporter: Reporter) -> None:
        """Write the record."""
        half_restored.begin(self._handle.uuid, devs, domain=self._handle.name, command=command, reporter=reporter)

    def whole(self, devs: Collection[str]) -> None:
        """Take the disks out of the record."""
        half_restored.end(self._handle.uuid, devs)


def named_path(disk: Disk, handle: DomainHandle) -> str | None:
    """Return the path of a disk's image as libvirt has it, None if it is not in a file or block device."""
    image = disk.images[0] if disk.images else None
    if image is None:
        return None
    if image.source_type == SourceType("volume") and image.pool and image.volume:
        try:
            return handle.host.volume_path(image.pool, image.volume)
        except VbackupError:
            return None
    return image.path if image.source_type in (SourceType.FILE, SourceType("block")) else None
