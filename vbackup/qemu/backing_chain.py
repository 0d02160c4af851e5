"""Find the backing chain of a disk that no QEMU has open, and describe the nodes that open it.

The domain XML comes first as far as it lists the chain; below that the image headers count.
Formats are never probed: what a guest wrote into a raw image must not be read as a header.
vbackup.qemu.storage_daemon opens the nodes; a running domain's QEMU already has them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError, DiskError, MonitorError
from vbackup.files import why_denied
from vbackup.model import BlockDriver, Disk, ImageLocation, SecretRef
from vbackup.qemu import qemu_img

#: Formats that can have a backing file (QAPI BlockdevOptionsGenericCOWFormat).
BACKED_FORMATS = frozenset(map(BlockDriver, ("qcow2", "qcow", "qed", "vmdk")))

#: The longest chain accepted; libvirt does not start a domain with a longer one.
MAX_IMAGES = 200


@dataclass(frozen=True)
class Image:
    """An existing image: a file or a block device of this host."""

    path: str
    format: BlockDriver
    is_block_device: bool
    identity: tuple[int, int]  #: the same for all names of one file or device
    secret: SecretRef | None = None  #: of its LUKS encryption


def images_of(disk: Disk, *, volume_path: Callable[[str, str], str]) -> tuple[Image, ...]:
    """Return the disk's whole backing chain, the active image first.

    ``volume_path`` returns the path of a volume, given its pool and name (``Host.volume_path``). Raises DiskError if
    an image is missing or not on this host, if its format is not recorded, or if the chain has a loop; the text has
    the remedy.
    """
    images: list[Image] = []
    for source in disk.images:
        _append(disk, images, _from_xml(disk, source, volume_path))
    while not disk.chain_ends:
        below = _from_header(disk, images[-1])
        if below is None:
            break
        _append(disk, images, below)
    return tuple(images)


def blockdevs(
    images: Sequence[Image], *, numbers: Iterator[int], secret_ids: Mapping[SecretRef, str]
) -> list[dict[str, Any]]:
    """Return the BlockdevOptions (QAPI) of the nodes that open the chain, to be added in this order, the top last.

    Names and structure are those of libvirt: ``libvirt-N-format`` on ``libvirt-N-storage``, N from ``numbers``.
    ``secret_ids`` has the ids of QEMU's secret objects. Files are locked as the domain's QEMU does, so that only one
    of the two can open them. Only the active image is opened for writing, to store bitmaps.
    """
    nodes: list[dict[str, Any]] = []
    below = None
    for image in reversed(images):
        number = next(numbers)
        read_only = image is not images[0]
        storage = {
            "driver": "host_device" if image.is_block_device else "file",
            "node-name": f"libvirt-{number}-storage",
            "filename": image.path,
            "locking": "on",
            "read-only": read_only,
        }
        node = {
            **_format_options(image, secret_ids),
            "node-name": f"libvirt-{number}-format",
            "read-only": read_only,
            "file": storage["node-name"],
        }
        if image.format in BACKED_FORMATS:
            node["backing"] = below
        nodes += [storage, node]
        below = node["node-name"]
    return nodes


def _format_options(image: Image, secret_ids: Mapping[SecretRef, str]) -> dict[str, Any]:
    if image.secret is None:
        return {"driver": image.format.name}
    key_secret = {"key-secret": secret_ids[image.secret]}
    if image.format == BlockDriver.RAW:
        return {"driver": "luks", **key_secret}
    return {"driver": image.format.name, "encrypt": {"format": "luks", **key_secret}}


def _append(disk: Disk, images: list[Image], image: Image) -> None:
    if any(image.identity == other.identity for other in images):
        raise DiskError(disk.dev, f"its backing chain has a loop: {image.path} occurs twice.")
    if len(images) == MAX_IMAGES:
        raise DiskError(disk.dev, f"its backing chain has more than {MAX_IMAGES} images.")
    images.append(image)


def _from_xml(disk: Disk, source: ImageLocation, volume_path: Callable[[str, str], str]) -> Image:
    path = source.path
    if source.oddity is not None:
        raise _unopenable(disk, source.oddity)
    if source.pool is not None and source.volume is not None:
        try:
            path = volume_path(source.pool, source.volume)
        except MonitorError as err:
            raise _unopenable(disk, str(err).rstrip(".")) from err
    if path is None or not path.startswith("/"):
        raise _unopenable(disk, f"its type is {source.source_type}, neither a file nor a block device of this host")
    if source.format is None:
        raise _unopenable(disk, f"the XML does not give the format of {path}")
    return _image(disk, path, source.format, source.secret)


def _from_header(disk: Disk, image: Image) -> Image | None:
    """Return the backing image that the header of ``image`` names, or None."""
    if image.format not in BACKED_FORMATS:
        return None
    try:
        header = qemu_img.header(Path(image.path), image_format=image.format)
    except ChainError as err:
        raise DiskError(disk.dev, str(err)) from err
    backing = header.backing_file
    if backing is None:
        return None
    # As in QEMU's path_has_protocol(): a colon before the first slash ends the name of a protocol.
    protocol, colon, rest = backing.partition(":")
    if colon and "/" not in protocol:
        if protocol != "file":
            raise _unopenable(disk, f"the backing file of {image.path} is {backing}, which is not a file of this host")
        backing = rest
    path = os.fspath(Path(image.path).parent / backing)
    if header.backing_format is None:
        raise DiskError(
            disk.dev,
            f"the image {image.path} does not record the format of its backing file {path}, and guessing is not safe."
            f" If it is qcow2, record that: 'qemu-img rebase -u -b {backing} -F qcow2 {image.path}'.",
        )
    return _image(disk, path, header.backing_format, None)


def _image(disk: Disk, path: str, image_format: BlockDriver, secret: SecretRef | None) -> Image:
    try:
        status = Path(path).stat()
        if not os.access(path, os.R_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except PermissionError as err:
        raise DiskError(
            disk.dev,
            f"its image {path} cannot be opened: {err.strerror}. {why_denied(Path(path))} Or leave the disk out with"
            f" --exclude-disk {disk.dev}.",
        ) from err
    except OSError as err:
        raise _unopenable(disk, f"the image {path} cannot be accessed: {err.strerror}") from err
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise _unopenable(disk, f"{path} is neither a file nor a block device")
    is_block_device = stat.S_ISBLK(status.st_mode)
    identity = (0, status.st_rdev) if is_block_device else (status.st_dev, status.st_ino)
    return Image(path, image_format, is_block_device=is_block_device, identity=identity, secret=secret)


def _unopenable(disk: Disk, reason: str) -> DiskError:
    return DiskError(
        disk.dev,
        f"it cannot be read while the domain is off: {reason}. Leave it out with --exclude-disk {disk.dev}, or start"
        " the domain.",
    )
