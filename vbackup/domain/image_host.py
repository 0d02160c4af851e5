"""The images of a domain that is off, on the host that has them: this one, or a hypervisor that a link leads to.

What a storage daemon there opens is found as on this host (vbackup.qemu.backing_chain), with less: raw and qcow2 images
that are files or block devices, without external data files, and each records the format of its backing file. Files are
only looked at through the helper, so that nothing is opened that could name others.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vbackup import process
from vbackup.domain import access
from vbackup.errors import ChainError, DiskError, MonitorError, RemoteError
from vbackup.files import why_denied
from vbackup.model import BlockDriver, Disk, SecretRef
from vbackup.qemu import backing_chain, qcow2
from vbackup.qemu.backing_chain import Image

if TYPE_CHECKING:
    from vbackup.remote.link import Link

VolumePath = Callable[[str, str], str]
#: The formats that are read on a hypervisor.
_FORMATS = (BlockDriver.RAW, BlockDriver.QCOW2)


class ImageHost(Protocol):
    """Looks at the images of disks, and at who has them open."""

    @property
    def is_here(self) -> bool:
        """True for this host."""

    def images_of(self, disk: Disk, volume_path: VolumePath) -> tuple[Image, ...]:
        """Return the backing chain of a disk, as backing_chain.images_of does."""

    def doubt(self, image: Image) -> str | None:
        """Return what keeps us from knowing that no other host has the image open, as access.doubt does."""

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Return modification time in ns and size in bytes of a file; None if it is gone, or they show nothing."""

    def users_of(self, path: str, *, but: int | None = None) -> list[str]:
        """Return who has the file open on that host, as far as that is known, without the process ``but``."""

    def why_denied(self, path: str) -> str:
        """Return why a file may not be opened, as sentences; "" if that is not known."""


@dataclass(frozen=True)
class ImagesHere:
    """Images of this host."""

    @property
    def is_here(self) -> bool:
        """Return True."""
        return True

    def images_of(self, disk: Disk, volume_path: VolumePath) -> tuple[Image, ...]:
        """Read the headers."""
        return backing_chain.images_of(disk, volume_path=volume_path)

    def doubt(self, image: Image) -> str | None:
        """Look at its file system."""
        return access.doubt(image)

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Open it, which makes NFS ask its server (close-to-open consistency)."""
        if not access.has_times(path):
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return status.st_mtime_ns, status.st_size

    def users_of(self, path: str, *, but: int | None = None) -> list[str]:
        """Look into /proc."""
        return process.users_of(path) if but is None else process.other_users_of(path, but)

    def why_denied(self, path: str) -> str:
        """Look at modes and owners."""
        return why_denied(Path(path))


@dataclass(frozen=True)
class ImagesThere:
    """Images of a hypervisor."""

    link: Link

    @property
    def is_here(self) -> bool:
        """Return False."""
        return False

    def images_of(self, disk: Disk, volume_path: VolumePath) -> tuple[Image, ...]:
        """Read the headers through the helper. Raises DiskError, LinkLostError."""
        images: list[Image] = []
        for source in disk.images:
            path = source.path
            if source.oddity is not None:
                raise _unopenable(disk, source.oddity)
            if source.pool is not None and source.volume is not None:
                try:
                    path = volume_path(source.pool, source.volume)
                except MonitorError as err:
                    raise _unopenable(disk, str(err).rstrip(".")) from err
            if path is None or not path.startswith("/"):
                raise _unopenable(disk, f"its type is {source.source_type}, neither a file nor a block device")
            self._append(disk, images, path, source.format, source.secret)
        while not disk.chain_ends and images[-1].format == BlockDriver.QCOW2:
            header = self._header(disk, images[-1].path)
            if header.backing_file is None:
                break
            path = os.path.normpath(Path(images[-1].path).parent / header.backing_file.removeprefix("file:"))
            self._append(disk, images, path, header.backing_format, None)
        return tuple(images)

    def _append(
        self, disk: Disk, images: list[Image], path: str, image_format: BlockDriver | None, secret: SecretRef | None
    ) -> None:
        if image_format is None:
            raise _unopenable(disk, f"the format of {path} is recorded neither in the XML nor in the image above it")
        if image_format not in _FORMATS:
            raise _unopenable(disk, f"the format of {path} is {image_format}, and it is on another host")
        try:
            status = self.link.stat(path)
        except RemoteError as err:
            raise _unopenable(disk, str(err).rstrip(".")) from err
        is_block_device = stat.S_ISBLK(status["mode"])
        if not is_block_device and not stat.S_ISREG(status["mode"]):
            raise _unopenable(disk, f"{path} is neither a file nor a block device")
        if image_format == BlockDriver.QCOW2 and self._header(disk, path).has_data_file:
            raise _unopenable(disk, f"the image {path} has an external data file, and is on another host")
        identity = (status["dev"], status["ino"])
        if any(identity == other.identity for other in images):
            raise DiskError(disk.dev, f"its backing chain has a loop: {path} occurs twice.")
        if len(images) == backing_chain.MAX_IMAGES:
            raise DiskError(disk.dev, f"its backing chain has more than {backing_chain.MAX_IMAGES} images.")
        images.append(Image(path, image_format, is_block_device, identity, secret))

    def _header(self, disk: Disk, path: str) -> qcow2.Header:
        try:
            return qcow2.header_in(next(self.link.read_file(path), b""), Path(path))
        except (ChainError, RemoteError) as err:
            raise _unopenable(disk, str(err).rstrip(".")) from err

    def doubt(self, image: Image) -> str | None:
        """Ask findmnt(8) for its file system."""
        if image.is_block_device:
            return "is a block device, which another host may have open"
        found = self.link.try_run(["findmnt", "--noheadings", "--output", "FSTYPE", "--target", image.path])
        file_system = found.stdout.decode(errors="replace").strip()
        if file_system in access.LOCAL_FILE_SYSTEMS:
            return None
        return f"is on a filesystem that other hosts may share ({file_system or 'of an unknown type'})"

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Ask for its status."""
        try:
            status = self.link.stat(path)
        except RemoteError:
            return None
        return None if stat.S_ISBLK(status["mode"]) else (status["mtime_ns"], status["size"])

    def users_of(self, path: str, *, but: int | None = None) -> list[str]:
        """Nobody is known."""
        return []

    def why_denied(self, path: str) -> str:
        """Nothing is known."""
        return ""


def _unopenable(disk: Disk, reason: str) -> DiskError:
    return DiskError(
        disk.dev,
        f"it cannot be read while the domain is off: {reason}. Leave it out with --exclude-disk {disk.dev}, start the"
        " domain, or run vbackup on its host.",
        cause=f"it cannot be read: {reason}",
    )
