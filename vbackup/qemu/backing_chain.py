"""Find the backing chain of a disk that no QEMU has open, and describe the nodes that open it.

The domain XML comes first as far as it lists the chain; below that the image headers count. A relative name is taken
from the directory of the image that has it. Where an image does not record the format of its backing file, libvirt
probes it, and so does vbackup.qemu.probing, only to read what libvirt would: what a guest wrote into a raw image must
not be read as a header that names other files.
vbackup.qemu.storage_daemon opens the nodes; a running domain's QEMU already has them.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError, DiskError, MonitorError
from vbackup.files import why_denied
from vbackup.model import BlockDriver, Disk, ImageLocation, SecretRef
from vbackup.qemu import probing, qcow2, qemu_img

#: Formats that can have a backing file (QAPI BlockdevOptionsGenericCOWFormat).
BACKED_FORMATS = frozenset(map(BlockDriver, ("qcow2", "qcow", "qed", "vmdk")))

#: The working directory of a QEMU that libvirt starts.
QEMU_DIRECTORY = Path("/")

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
    data_file: str | None = None  #: path of its external data file


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
    images: Sequence[Image], *, numbers: Iterator[int], secret_ids: Mapping[SecretRef, str], read_only: bool = False
) -> list[dict[str, Any]]:
    """Return the BlockdevOptions (QAPI) of the nodes that open the chain, to be added in this order, the top last.

    Names and structure are those of libvirt: ``libvirt-N-format`` on ``libvirt-N-storage``, N from ``numbers``.
    ``secret_ids`` has the ids of QEMU's secret objects. Files are locked as the domain's QEMU does, so that only one
    of the two can open them. Only the active image is opened for writing, to store bitmaps, unless ``read_only``.
    (QEMU's auto-read-only is off by default: it would write wherever it can.)
    """
    nodes: list[dict[str, Any]] = []
    below = None
    for image in reversed(images):
        number = next(numbers)
        is_read_only = read_only or image is not images[0]
        storage = {
            "driver": "host_device" if image.is_block_device else "file",
            "node-name": f"libvirt-{number}-storage",
            "filename": image.path,
            "locking": "on",
            "read-only": is_read_only,
        }
        node = {
            **_format_options(image, secret_ids),
            "node-name": f"libvirt-{number}-format",
            "read-only": is_read_only,
            "file": storage["node-name"],
        }
        if image.format in BACKED_FORMATS:
            node["backing"] = below
        nodes.append(storage)
        if image.data_file is not None:
            data = {**storage, "node-name": f"libvirt-{number}-data", "filename": image.data_file}
            data["driver"] = "host_device" if stat.S_ISBLK(Path(image.data_file).stat().st_mode) else "file"
            nodes.append(data)
            node["data-file"] = data["node-name"]
        nodes.append(node)
        below = node["node-name"]
    return nodes


def is_format_node(node: Mapping[str, Any]) -> bool:
    """Return True for a node of ``blockdevs`` that is a layer, False for one that is its storage."""
    return "file" in node


def reopened(node: Mapping[str, Any]) -> list[str]:
    """Return the nodes to reopen together with a layer of ``blockdevs``."""
    return [node[child] for child in ("file", "data-file") if child in node]


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
    header: qcow2.Header | qemu_img.Header
    try:
        if image.format == BlockDriver.QCOW2:
            header = qcow2.header_of_source(Path(image.path))
        else:
            header = qemu_img.header(Path(image.path), image_format=image.format)
    except ChainError as err:
        raise DiskError(disk.dev, str(err)) from err
    if header.backing_file is None:
        return None
    path = _path_in(disk, image.path, header.backing_file, what="backing file")
    image_format = header.backing_format
    if image_format is None:
        image_format = _unrecorded_format(disk, image, backing=header.backing_file, path=path)
    return _image(disk, path, image_format, None)


def _path_in(disk: Disk, image_path: str, name: str, *, what: str) -> str:
    """Return the path of the file that an image names. Raises DiskError if it is no file of this host."""
    # As in QEMU's path_has_protocol(): a colon before the first slash ends the name of a protocol.
    protocol, colon, rest = name.partition(":")
    if colon and "/" not in protocol:
        if protocol != "file":
            raise _unopenable(disk, f"the {what} of {image_path} is {name}, which is not a file of this host")
        name = rest
    return os.fspath(Path(image_path).parent / name)


def _unrecorded_format(disk: Disk, image: Image, *, backing: str, path: str) -> BlockDriver:
    """Return the format of a backing file that ``image`` does not record, as libvirt finds it.

    libvirt 9.0 probes, and starts the domain unless what it finds has a backing file. Raises DiskError, with
    the command that records the format.
    """
    try:
        found = probing.probe(Path(path))
    except OSError as err:
        raise _unopenable(disk, f"the image {path} cannot be accessed: {err.strerror}") from err
    if not found.names_files:
        return found.format
    command = shlex.join(["qemu-img", "rebase", "-u", "-b", backing, "-F", found.format.name, image.path])
    raise DiskError(
        disk.dev,
        f"the image {image.path} does not record the format of its backing file {path}. That looks like {found.format}"
        " and may name other files, which a guest can also have written into a raw disk, so it is not opened. If it is"
        f" {found.format}, record that: {command} (with -F raw if it is raw)",
    )


def _image(disk: Disk, path: str, image_format: BlockDriver, secret: SecretRef | None) -> Image:
    is_block_device, identity = _file(disk, path)
    data_file = _data_file(disk, path) if image_format == BlockDriver.QCOW2 else None
    return Image(
        path, image_format, is_block_device=is_block_device, identity=identity, secret=secret, data_file=data_file
    )


def _file(disk: Disk, path: str) -> tuple[bool, tuple[int, int]]:
    """Return whether the file is a block device, and its identity. Raises DiskError if it is something else."""
    try:
        status = Path(path).stat()
        if not os.access(path, os.R_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except PermissionError as err:
        cause = f"its image {path} cannot be opened: {err.strerror}. {why_denied(Path(path))}"
        raise DiskError(
            disk.dev, f"{cause} Or leave the disk out with --exclude-disk {disk.dev}.", cause=cause
        ) from err
    except OSError as err:
        raise _unopenable(disk, f"the image {path} cannot be accessed: {err.strerror}") from err
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise _unopenable(disk, f"{path} is neither a file nor a block device")
    is_block_device = stat.S_ISBLK(status.st_mode)
    return is_block_device, (0, status.st_rdev) if is_block_device else (status.st_dev, status.st_ino)


def _data_file(disk: Disk, path: str) -> str | None:
    """Return the path of the external data file of a qcow2 image, or None.

    QEMU itself takes a relative name from its working directory, which is "/" for a domain (libvirt before 10.10);
    libvirt since 10.10 takes it from the directory of the image. Raises DiskError if that makes a difference.
    """
    try:
        header = qcow2.header_of_source(Path(path))
    except ChainError as err:
        raise DiskError(disk.dev, str(err)) from err
    if not header.has_data_file:
        return None
    if not header.data_file:
        raise _unopenable(disk, f"the image {path} has an external data file and does not name it")
    data_file = _path_in(disk, path, header.data_file, what="data file")
    _, identity = _file(disk, data_file)
    in_root = QEMU_DIRECTORY / header.data_file
    if in_root.exists() and _file(disk, os.fspath(in_root))[1] != identity:
        raise DiskError(
            disk.dev,
            f"the image {path} names the data file {header.data_file}, and there are two: {data_file}, and {in_root},"
            " which QEMU opens with a libvirt before 10.10. Move the wrong one away, or record the absolute path of"
            " the right one ('qemu-img amend -o data_file=PATH').",
        )
    return data_file


def _unopenable(disk: Disk, reason: str) -> DiskError:
    return DiskError(
        disk.dev,
        f"it cannot be read while the domain is off: {reason}. Leave it out with --exclude-disk {disk.dev}, or start"
        " the domain.",
        cause=f"it cannot be read: {reason}",
    )
