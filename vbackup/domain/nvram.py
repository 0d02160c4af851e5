"""Read the variables of a domain's UEFI firmware, wherever libvirt has them: a file, a device, a volume, an NBD export.

The guest may set variables in the meantime, so they are read until two readings are the same. What is read are the
bytes of the image that QEMU has, raw or qcow2. Only the XML tells which: the guest can write anything to a raw store,
also the header of a qcow2 image that names a file of the host. So nothing is ever opened as qcow2 to read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import driver, nvram_xml
from vbackup.domain.host import DomainHandle
from vbackup.domain.host_files import HostFiles
from vbackup.domain.state_files import UnsavedError, stable, told
from vbackup.errors import ChainError, MalformedError, QmpError, StorageError, VbackupError
from vbackup.fields import objects
from vbackup.files import read_regular
from vbackup.model import MAX_NVRAM_BYTES, Domain, ImageFormat
from vbackup.qemu import qcow2, qemu_img
from vbackup.qemu.monitor import Monitor

#: How long a server may take to give one.
_SERVER_S = 30.0


@dataclass(frozen=True)
class Nvram:
    """The variables, as an image."""

    data: bytes
    path: str  #: where the original has them


def read(handle: DomainHandle, domain: Domain, monitor: Monitor | None, files: HostFiles | None) -> Nvram | None:
    """Return the variables of UEFI firmware: without them a guest may not find its boot loader.

    ``monitor`` is that of the domain's QEMU, None if it is off; ``files`` reads those of its host, None if nothing
    does. Returns None for a domain without NVRAM. Raises UnsavedError.
    """
    path = domain.nvram_path
    if path is None and domain.nvram_trouble == nvram_xml.UNNAMED and monitor is None and files is not None:
        path = _unnamed(handle, domain, files)
    if domain.nvram_volume is not None:
        path = "/".join(domain.nvram_volume) if files is None else _path_of_volume(handle, domain.nvram_volume)
    if path is None and domain.nvram_url is None:
        if domain.nvram_trouble is None:
            return None
        is_unnamed = domain.nvram_trouble == nvram_xml.UNNAMED
        while_off = "; a backup of the running domain has them" if is_unnamed else ""
        raise UnsavedError(domain.nvram_trouble + while_off)
    if files is None or (path is None and not handle.host.is_local):
        raise UnsavedError(f"the NVRAM store {path or domain.nvram_url} is on another host", is_unexpected=True)
    if path is None:
        assert domain.nvram_url is not None
        url = domain.nvram_url
        return Nvram(_stable(lambda: _read_url(url), url, domain, monitor), url)
    with told(f"the NVRAM store {path}", too_large="is larger than any firmware's"):
        return Nvram(_read_path(path, domain, monitor, files), path)


def _unnamed(handle: DomainHandle, domain: Domain, files: HostFiles) -> str | None:
    """Return the store that libvirt opens at the next start if its definition does not name one, if that is there.

    qemuDomainNVRAMPathFormat of libvirt 9.0: NAME_VARS.fd in the driver's directory.
    """
    places = driver.directories_of(handle.host)
    if places is None:
        return None
    path = str(places.nvram / f"{domain.name}_VARS.fd")
    return None if files.is_missing(path) else path


def _path_of_volume(handle: DomainHandle, volume: tuple[str, str]) -> str:
    try:
        path = handle.host.volume_path(*volume)
    except VbackupError as err:
        raise UnsavedError(f"the NVRAM store is a volume: {str(err).rstrip('.')}", is_unexpected=True) from err
    if not path.startswith("/"):
        raise UnsavedError(f"UEFI variables on a volume ({path}) that is no file of this host")
    return path


def _read_path(path: str, domain: Domain, monitor: Monitor | None, files: HostFiles) -> bytes:
    """Return the content of the store at one moment. Raises OSError, UnsavedError."""
    real = files.real(path)
    return _stable(lambda: files.read_any(real, max_bytes=MAX_NVRAM_BYTES), real, domain, monitor)


def _stable(read_it: Callable[[], bytes], name: str, domain: Domain, monitor: Monitor | None) -> bytes:
    """Return what two readings have said alike. Raises UnsavedError.

    QEMU keeps tables of a qcow2 image in its cache, so it is asked to write them before each reading.
    """
    is_qcow2 = domain.nvram_format is ImageFormat.QCOW2

    def read_flushed() -> bytes:
        if is_qcow2 and monitor is not None:
            _flush(name, monitor)
        return read_it()

    data = stable(read_flushed, f"the NVRAM store {name}")
    if is_qcow2:
        _refuse_parts_elsewhere(data, name)
    return data


def _refuse_parts_elsewhere(data: bytes, name: str) -> None:
    """Raise UnsavedError if these bytes are no qcow2 image, or not all of one."""
    try:
        header = qcow2.header_in(data, Path(name))
    except ChainError as err:
        raise UnsavedError(str(err).rstrip("."), is_unexpected=True) from err
    if not header.is_alone:
        raise UnsavedError(f"the NVRAM store {name} has a part of its data in another file, or is encrypted")


def _read_url(url: str) -> bytes:
    """Return all bytes of an export, whatever they are. Raises UnsavedError."""
    import tempfile  # which few domains need

    with tempfile.TemporaryDirectory(prefix="vbackup-") as directory:
        path = Path(directory) / "nvram"
        try:
            qemu_img.copy_bytes(url, path, max_bytes=MAX_NVRAM_BYTES, timeout_s=_SERVER_S)
            return read_regular(path, max_bytes=MAX_NVRAM_BYTES)
        except (StorageError, OSError) as err:
            raise UnsavedError(f"the NVRAM store {url}: {str(err).rstrip('.')}", is_unexpected=True) from err


def _flush(name: str, monitor: Monitor) -> None:
    """Let QEMU write what it caches of the store, which is the file at that real path, or what it calls so itself.

    Raises UnsavedError if it does not have it open or cannot write.
    """
    for entry in objects(monitor.execute("query-block"), "query-block", MalformedError):
        image = entry.object("inserted").optional_text("file") if "inserted" in entry else None
        device = entry.optional_text("qdev")
        if image is not None and device is not None and name in (image, os.path.realpath(image)):
            try:
                # QMP has no command that flushes a node without changing it.
                said = monitor.execute("human-monitor-command", {"command-line": f"qemu-io -d {device} flush"})
            except QmpError as err:
                said = err.description
            if said:
                raise UnsavedError(f"QEMU could not write the tables of the NVRAM store {name}", is_unexpected=True)
            return
    raise UnsavedError(f"QEMU does not have the NVRAM store {name} open", is_unexpected=True)
