"""Write the files of a standby: new images beside the old ones, and what its machine needs beside disks.

An image has a name of its own until it is complete and checked, and takes its place with one rename. The files of the
machine are small, and each is replaced as a whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vbackup import files, names
from vbackup.domain import defining, identity, media, swtpm
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.restored_xml import RestoredXml
from vbackup.engine import restored_checkpoint
from vbackup.engine.restored_checkpoint import RestoredImage
from vbackup.errors import VbackupError
from vbackup.files import storage_errors
from vbackup.images import destination
from vbackup.images.replacement import Replacement
from vbackup.images.restoring import Restoring
from vbackup.model import ImageFormat, MachineKind
from vbackup.operations import restore, restored_domain, restored_machine, rollback
from vbackup.operations.restored_domain import DefineRequest
from vbackup.operations.restored_machine import Placed
from vbackup.operations.rollback import Rollback, RollbackRequest
from vbackup.report import Reporter
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class NewImage:
    """A disk of a standby that got a new image."""

    dev: str
    reason: str
    written_bytes: int  #: what the image takes on storage


class StandbyFiles(Protocol):
    """What a standby is made of, at a backup, on this host or another one (vbackup.operations.linked_standby)."""

    @property
    def point(self) -> Chosen:
        """The backup."""

    @property
    def directory(self) -> Path:
        """Where the files are, on their host."""

    @property
    def repository(self) -> Repository:
        """What the backup is read from."""

    @property
    def reporter(self) -> Reporter:
        """What becomes of it."""

    @property
    def stop(self) -> Stop:
        """The request to stop."""

    @property
    def machine(self) -> tuple[Placed, ...]:
        """What the machine needs beside disks, with the places."""

    def image(self, dev: str) -> Path:
        """Return the path of a disk's image."""

    def refuse_existing(self) -> None:
        """Raise StorageError if one of the files exists."""

    def refuse_unfit(self) -> None:
        """Raise UnsuitableError for what the host of the standby cannot have."""

    def make_directory(self) -> bool:
        """Make the directory, through which QEMU can reach the images; return True if it is new."""

    def remove_directory(self) -> None:
        """Remove the directory if it is empty."""

    def opened(
        self, handle: DomainHandle | None, text: str, how: RollbackRequest
    ) -> AbstractContextManager[Rollback | None]:
        """Open the images, and yield what is to be done; None if there are none. ``text``: the XML that names them."""

    def write_images(self, ready: Rollback | None, reasons: Mapping[str, str]) -> list[NewImage]:
        """Make and check new images of these disks if that can be done beside the old ones; none is left if it fails.

        ``reasons``: why a disk needs one, by dev.
        """

    def begin_images(self, ready: Rollback | None, reasons: Mapping[str, str], text: str) -> None:
        """Let the rollback write the new images that could not be made beside the old ones."""

    def discard(self, devs: Sequence[str]) -> None:
        """Remove new images that are not in their places."""

    def put_images(self, devs: Sequence[str]) -> None:
        """Put new images in the places of the old ones."""

    def remove_images(self, devs: Sequence[str]) -> None:
        """Remove the images of disks that the domain does not have any more."""

    def put_machine(self, text: str, host: Host) -> None:
        """Write the machine's files in the place of the old ones."""

    def definition(self, restored: RestoredXml, host: Host, *, is_new: bool) -> str:
        """Return the XML of the restored domain for that host; ``is_new``: with warnings, and if libvirt takes it."""


@dataclass(frozen=True)
class Files:
    """What a standby on this host is made of, at a backup (StandbyFiles)."""

    point: Chosen
    directory: Path
    repository: Repository
    reporter: Reporter
    stop: Stop
    speed_bytes_s: int | None = None

    def image(self, dev: str) -> Path:
        """Return the path of a disk's image."""
        return self.directory / f"{dev}.qcow2"

    @property
    def machine(self) -> tuple[Placed, ...]:
        """What the machine needs beside disks, with the places."""
        return restored_machine.placed(self.point.backup, self.directory)

    def refuse_existing(self) -> None:
        """Raise StorageError if one of the files exists."""
        paths = [*map(self.image, self.point.chains), *(one.path for one in self.machine)]
        destination.refuse_existing(paths, instead="another directory with --directory")

    def refuse_unfit(self) -> None:
        """Do nothing: a restore brings everything."""

    def make_directory(self) -> bool:
        """Make the directory, through which QEMU can reach the images; return True if it is new."""
        with storage_errors(f"write to {self.directory}"):
            is_new = not self.directory.exists()
            destination.make(self.directory)
        return is_new

    def remove_directory(self) -> None:
        """Remove the directory if it is empty."""
        with suppress(OSError):
            self.directory.rmdir()

    def opened(
        self, handle: DomainHandle | None, text: str, how: RollbackRequest
    ) -> AbstractContextManager[Rollback | None]:
        """Open the images, and yield what is to be done; None for a domain that libvirt does not have yet."""
        if handle is None:
            return nullcontext()
        return rollback.prepared(
            how, handle, self.point, repository=self.repository, reporter=self.reporter, stop=self.stop
        )

    def write_images(self, ready: Rollback | None, reasons: Mapping[str, str]) -> list[NewImage]:
        """Make and check new images of these disks, beside the old ones. Raises what Restoring.write raises.

        None is left if it fails. ``reasons``: why a disk needs one, by dev.
        """
        made = []
        self._sweep()
        try:
            with tempfile.TemporaryDirectory(prefix="vbackup-") as scratch:
                restoring = Restoring(
                    self.repository, self.reporter, self.stop, Path(scratch), speed_bytes_s=self.speed_bytes_s
                )
                for dev, reason in reasons.items():
                    new = self._replacement(dev).new
                    self.reporter.step(f"Disk {dev}: a new image is made: {reason.rstrip('.')}.")
                    restoring.write(self.point.chains[dev], new, ImageFormat.QCOW2)
                    made.append(NewImage(dev, reason, new.stat().st_blocks * 512))
            restored_checkpoint.add(
                [
                    RestoredImage(dev, self.point.choice.disks[dev], self._replacement(dev).new, self.image(dev))
                    for dev in reasons
                ],
                uuid=self.point.backup.domain_uuid,
                repository=self.repository,
                reporter=self.reporter,
                stop=self.stop,
            )
        except BaseException:
            self.discard(list(reasons))
            raise
        return made

    def _sweep(self) -> None:
        """Remove the new images of runs that were killed: the caller has the domain's lock."""
        with storage_errors(f"read {self.directory}"):
            for path in self.directory.glob(".*.qcow2.vbackup-*"):
                if names.BACKUP_ID.fullmatch(path.name.rpartition(".vbackup-")[2]):
                    path.unlink(missing_ok=True)

    def discard(self, devs: Sequence[str]) -> None:
        """Remove new images that are not in their places."""
        for dev in devs:
            with suppress(OSError):
                self._replacement(dev).discard()

    def put_images(self, devs: Sequence[str]) -> None:
        """Put new images in the places of the old ones. Raises StorageError."""
        for dev in devs:
            with storage_errors(f"put a new image in the place of {self.image(dev)}"):
                self._replacement(dev).new.replace(self.image(dev))
        with storage_errors(f"write to {self.directory}"):
            files.fsync(self.directory)

    def remove_images(self, devs: Sequence[str]) -> None:
        """Remove the images of disks that the domain does not have any more. Raises StorageError."""
        for dev in devs:
            with storage_errors(f"remove {self.image(dev)}"):
                self.image(dev).unlink(missing_ok=True)

    def begin_images(self, ready: Rollback | None, reasons: Mapping[str, str], text: str) -> None:
        """Do nothing: they are complete."""

    def definition(self, restored: RestoredXml, host: Host, *, is_new: bool) -> str:
        """Return the XML of the standby. Raises what restored_domain.prepare raises, if it is new."""
        if not is_new:
            text = identity.keep(restored.text).text
            missing = defining.missing_media(host, text, restored=[str(one.path) for one in self.machine])
            return media.ejected(text, [one.dev for one in missing])
        place = restored_machine.tpm_place(restored.text, self.machine, host.real_uri)
        if place is not None:
            swtpm.refuse_existing(place)
        for warning in restore.warnings(self.point.choice, restored):
            self.reporter.warning(warning)
        others = [one for one in self.machine if one.file.kind is not MachineKind.TPM]
        return restored_domain.prepare(
            DefineRequest(), restored, machine=others, host=host, output=self.directory, reporter=self.reporter
        ).text

    def put_machine(self, text: str, host: Host) -> None:
        """Write the machine's files in the place of the old ones. Raises ChainError, StorageError, NoSpaceError."""
        if not self.machine:
            return
        with destination.temporary_directory(self.directory) as temporary:
            restored_machine.write(
                self.machine, self.point.backup, temporary, repository=self.repository, stop=self.stop
            )
            for one in self.machine:
                with storage_errors(f"write {one.path}"):
                    if one.path.is_dir() and not one.path.is_symlink():
                        shutil.rmtree(one.path)
                    (temporary / one.path.name).replace(one.path)
        self._put_tpm(text, host)

    def _put_tpm(self, text: str, host: Host) -> None:
        """Give libvirt the state of the TPM where it looks for it."""
        state = restored_machine.path_of(self.machine, MachineKind.TPM)
        if state is None:
            return
        place = restored_machine.tpm_place(text, self.machine, host.real_uri)
        if place is None:
            swtpm.give(state, swtpm.owner(host.real_uri))
            return
        with storage_errors(f"remove {place}"):
            if place.exists():
                shutil.rmtree(place)
        swtpm.install(state, place, swtpm.owner(host.real_uri))
        with suppress(OSError, VbackupError):
            shutil.rmtree(state)  # the keys in it are in one place only

    def _replacement(self, dev: str) -> Replacement:
        return Replacement(self.image(dev), self.point.backup.id)
