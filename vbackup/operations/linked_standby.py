"""The files of a standby on another host, written through the link to it (vbackup.remote.link).

A storage daemon there has the images, and one here reads the repository: QEMU's job writes what differs through NBD,
which the user's ssh carries. A disk that needs a new image gets an empty one there while the standby cannot be
started, and all its data is written to that.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import defining, domain_xml, identity, machine_xml, media
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.linked_images import LinkedSource, daemon_there
from vbackup.domain.restored_xml import RestoredXml
from vbackup.engine.rollback_reach import There
from vbackup.errors import RemoteError, StorageError, UnsuitableError
from vbackup.model import MachineKind
from vbackup.operations import restored_machine, rollback
from vbackup.operations.restored_machine import Placed
from vbackup.operations.rollback import Rollback, RollbackRequest
from vbackup.operations.standby_files import NewImage
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.remote.link import Link
from vbackup.report import Reporter
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: How much of a file of the machine is sent at a time.
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class LinkedFiles:
    """What a standby on another host is made of, at a backup (vbackup.operations.standby_files.StandbyFiles)."""

    link: Link
    point: Chosen
    directory: Path  #: on the other host
    repository: Repository
    reporter: Reporter
    stop: Stop

    def image(self, dev: str) -> Path:
        """Return the path of a disk's image."""
        return self.directory / f"{dev}.qcow2"

    @property
    def machine(self) -> tuple[Placed, ...]:
        """What the machine needs beside disks, with the places."""
        return restored_machine.placed(self.point.backup, self.directory)

    def refuse_existing(self) -> None:
        """Raise StorageError if one of the files exists, UnsuitableError if one cannot be had on another host."""
        for path in [*map(self.image, self.point.chains), *(one.path for one in self.machine)]:
            if self._exists(path):
                raise StorageError(
                    f"{path} on {self.link.host} already exists, and vbackup never overwrites files; give another"
                    " directory with --directory."
                )

    def refuse_unfit(self) -> None:
        """Raise UnsuitableError for what cannot be brought to another host."""
        if restored_machine.path_of(self.machine, MachineKind.TPM) is not None:
            raise UnsuitableError(
                f"Domain {self.point.backup.domain_name} has an emulated TPM, whose state has to be where the libvirt"
                f" of {self.link.host} has it: run 'vbackup replicate' on that host, with --to qemu:///system."
            )

    def make_directory(self) -> bool:
        """Make the directory, through which QEMU can reach the images; return True if it is new."""
        if self._exists(self.directory):
            return False
        self.link.run(["mkdir", "-p", "-m", "0711", "--", os.fspath(self.directory)])
        return True

    def remove_directory(self) -> None:
        """Remove the directory if it is empty."""
        self.link.try_run(["rmdir", "--", os.fspath(self.directory)])

    @contextmanager
    def opened(self, handle: DomainHandle | None, text: str, how: RollbackRequest) -> Iterator[Rollback]:
        """Open the images there, and yield what is to be done; ``text``: the XML that names them."""
        if handle is not None:
            rollback.refuse_running(handle)
        with (
            ExitStack() as stack,
            daemon_there(self.link, self.reporter) as there,
            StorageDaemon(self.reporter, is_only_read=True) as here,
        ):
            yield rollback.planned(
                how,
                LinkedSource(handle, domain_xml.parse(text), there),
                self.point,
                stack,
                repository=self.repository,
                reporter=self.reporter,
                stop=self.stop,
                reach=There(here, there.daemon, there.nbd),
            )

    def write_images(self, ready: Rollback | None, reasons: Mapping[str, str]) -> list[NewImage]:
        """Compare what will be written to new images; they are written when the standby cannot be started."""
        if ready is not None:
            ready.check_whole(list(reasons))
        return []

    def begin_images(self, ready: Rollback | None, reasons: Mapping[str, str], text: str) -> None:
        """Make the new images, which are empty, and let the rollback write all of them."""
        disks = {disk.dev: disk for disk in domain_xml.parse(text).disks}
        for dev, reason in reasons.items():
            self.reporter.step(f"Disk {dev}: a new image is made on {self.link.host}: {reason.rstrip('.')}.")
            size_bytes = self.point.chains[dev][0].image.virtual_size_bytes
            path = os.fspath(self.image(dev))
            self.link.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=1.1", "--", path, str(size_bytes)])
            self.link.run(["chmod", "0600", "--", path])
            if ready is not None:
                ready.write_whole(disks[dev])

    def discard(self, devs: Sequence[str]) -> None:
        """Do nothing: there is no image beside another."""

    def put_images(self, devs: Sequence[str]) -> None:
        """Put what was written on storage."""
        self.link.run(["sync", "-f", "--", os.fspath(self.directory)], timeout_s=600)

    def remove_images(self, devs: Sequence[str]) -> None:
        """Remove the images of disks that the domain does not have any more. Raises RemoteError."""
        for dev in devs:
            if self._exists(self.image(dev)):
                self.link.remove_file(os.fspath(self.image(dev)))

    def put_machine(self, text: str, host: Host) -> None:
        """Write the machine's files in the place of the old ones. Raises ChainError, RemoteError."""
        if not self.machine:
            return
        with tempfile.TemporaryDirectory(prefix="vbackup-") as temporary:
            directory = Path(temporary)
            restored_machine.write(
                self.machine, self.point.backup, directory, repository=self.repository, stop=self.stop
            )
            for one in self.machine:
                self.link.write_file(os.fspath(one.path), _pieces(directory / one.path.name))

    def definition(self, restored: RestoredXml, host: Host, *, is_new: bool) -> str:
        """Return the XML of the standby, without media that are not on its host. Raises UnsuitableError."""
        text = identity.keep(restored.text).text
        own = {os.fspath(one.path) for one in self.machine}
        missing = [
            one for one in media.of(text) if one.path is not None and one.path not in own and not self._has(one.path)
        ]
        if is_new:
            defining.refuse_taken(host, identity.of(text), is_new=False)
            self._warn(
                restored, [f"The drive {one.dev} is empty: {one} is not on {self.link.host}." for one in missing]
            )
        return media.ejected(text, [one.dev for one in missing])

    def _warn(self, restored: RestoredXml, notes: Sequence[str]) -> None:
        for remark in (*self.point.choice.remarks, *notes):
            self.reporter.warning(remark)
        for left in restored.left_out:
            self.reporter.warning(f"Not in the restored domain.xml: {left.dev} ({left.reason}).")
        for left in restored.shared:
            self.reporter.warning(
                f"The restored domain.xml still names the original's {left.dev} ({left.reason}), which has to be on"
                f" {self.link.host}."
            )
        loader = machine_xml.loader(restored.text)
        if loader is not None and not self._has(loader):
            self.reporter.warning(f"The firmware {loader} is not on {self.link.host}: install its package there.")

    def _exists(self, path: Path) -> bool:
        return self._has(os.fspath(path))

    def _has(self, path: str) -> bool:
        try:
            self.link.stat(path)
        except RemoteError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
