"""Write the files of a standby: new images beside the old ones, and what its machine needs beside disks.

An image has a name of its own until it is complete and checked, and takes its place with one rename. The files of the
machine are small, and each is replaced as a whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup import files, names
from vbackup.domain import swtpm
from vbackup.domain.host import Host
from vbackup.engine import restored_checkpoint
from vbackup.engine.restored_checkpoint import RestoredImage
from vbackup.errors import VbackupError
from vbackup.files import storage_errors
from vbackup.images import destination
from vbackup.images.replacement import Replacement
from vbackup.images.restoring import Restoring
from vbackup.model import ImageFormat, MachineKind
from vbackup.operations import restored_machine
from vbackup.operations.restored_machine import Placed
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


@dataclass(frozen=True)
class Files:
    """What a standby is made of, at a backup."""

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

    def paths(self) -> list[Path]:
        """Return the paths of all files."""
        return [*map(self.image, self.point.chains), *(one.path for one in self.machine)]

    def write_images(self, reasons: Mapping[str, str]) -> list[NewImage]:
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

    def refuse_strange_tpm(self, text: str, host: Host) -> None:
        """Raise StorageError if libvirt has the state of a TPM where that of a new standby has to be."""
        place = restored_machine.tpm_place(text, self.machine, host.real_uri)
        if place is not None:
            swtpm.refuse_existing(place)

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
