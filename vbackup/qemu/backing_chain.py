"""Which images a disk consists of while no QEMU has them open, and the nodes that open them.

The domain XML is preferred where it has the backing chain; below that the images' own headers count.
Formats are never probed: what a guest wrote into a raw image must not become a header.
Who opens the nodes is vbackup.qemu.storage_daemon; a running domain's QEMU has its own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError, DiskError, MonitorError
from vbackup.model import Disk, ImageLocation, SecretRef
from vbackup.qemu import qemu_img

#: Formats that can have a backing file (QAPI BlockdevOptionsGenericCOWFormat).
BACKED_FORMATS = frozenset(("qcow2", "qcow", "qed", "vmdk"))

#: A chain of more images than this is refused, as libvirt refuses to start the domain with it.
MAX_IMAGES = 200


@dataclass(frozen=True)
class Image:
    """An image that is there: a file, or a block device of this host."""

    path: str
    format: str
    is_block_device: bool
    identity: tuple[int, int]  #: the same for every name of it
    secret: SecretRef | None = None


def images_of(disk: Disk, *, volume_path: Callable[[str, str], str]) -> tuple[Image, ...]:
    """The disk's whole backing chain, the active image first.

    ``volume_path`` tells where a volume (pool, name) is. Raises DiskError where an image is missing, is not
    on this host, has no recorded format, or stands on itself.
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
    """The QAPI BlockdevOptions that open the chain, in the order to add them: the last is the active image's.

    Names and layers are libvirt's: ``libvirt-N-format`` on ``libvirt-N-storage``. Files are locked as by a
    QEMU of the domain, so that neither opens what the other has. Only the active image is opened for
    writing: bitmaps are stored in it.
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
        return {"driver": image.format}
    key_secret = {"key-secret": secret_ids[image.secret]}
    if image.format == "raw":
        return {"driver": "luks", **key_secret}
    return {"driver": image.format, "encrypt": {"format": "luks", **key_secret}}


def _append(disk: Disk, images: list[Image], image: Image) -> None:
    if any(image.identity == other.identity for other in images):
        raise DiskError(disk.dev, f"its backing chain comes back to {image.path}.")
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
        raise _unopenable(disk, f"it is of type {source.source_type}, neither a file nor a block device of this host")
    if source.format is None:
        raise _unopenable(disk, f"the XML does not say which format {path} has")
    return _image(disk, path, source.format, source.secret)


def _from_header(disk: Disk, image: Image) -> Image | None:
    """The image that ``image`` names as its backing file."""
    if image.format not in BACKED_FORMATS:
        return None
    try:
        header = qemu_img.header(Path(image.path), image_format=image.format, shared=True)
    except ChainError as err:
        raise DiskError(disk.dev, str(err)) from err
    backing = header.backing_file
    if backing is None:
        return None
    # As QEMU tells them apart: a colon before the first slash ends the name of a protocol.
    protocol, colon, rest = backing.partition(":")
    if colon and "/" not in protocol:
        if protocol != "file":
            raise _unopenable(disk, f"{image.path} stands on {backing}, which is no file of this host")
        backing = rest
    path = os.fspath(Path(image.path).parent / backing)
    if header.backing_format is None:
        raise DiskError(
            disk.dev,
            f"the image {image.path} does not record the format of its backing file {path}, and guessing it is not"
            f" safe. If it is qcow2: 'qemu-img rebase -u -b {backing} -F qcow2 {image.path}'.",
        )
    return _image(disk, path, header.backing_format, None)


def _image(disk: Disk, path: str, image_format: str, secret: SecretRef | None) -> Image:
    try:
        found = Path(path).stat()
    except OSError as err:
        raise _unopenable(disk, f"the image {path} cannot be reached: {err.strerror}") from err
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        raise _unopenable(disk, f"{path} is neither a file nor a block device")
    if stat.S_ISBLK(found.st_mode):
        return Image(path, image_format, True, (0, found.st_rdev), secret)
    return Image(path, image_format, False, (found.st_dev, found.st_ino), secret)


def _unopenable(disk: Disk, reason: str) -> DiskError:
    return DiskError(
        disk.dev,
        f"it cannot be read while the domain is off: {reason}. Leave it out with --exclude-disk {disk.dev}, or start"
        " the domain.",
    )
