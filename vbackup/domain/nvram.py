"""Read the NVRAM store of a domain's UEFI firmware: a file that libvirt names, or that it is known to open.

The guest may set variables in the meantime, so the store is read until two readings are the same.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vbackup.domain import domain_xml
from vbackup.domain.host import DomainHandle
from vbackup.errors import ChainError, MalformedError, QmpError
from vbackup.fields import objects
from vbackup.files import is_regular, open_regular, read_regular
from vbackup.model import BlockDriver, Domain
from vbackup.qemu import qcow2
from vbackup.qemu.monitor import Monitor

#: NVRAM stores of UEFI firmware are well under 1 MiB.
MAX_NVRAM_BYTES = 64 * 1024 * 1024
#: A guest sets its variables in moments; firmware that writes all the time would be a fault.
MAX_READINGS = 10


class NvramError(Exception):
    """The NVRAM that a domain has cannot be read. ``is_unexpected``: a warning should tell the user."""

    def __init__(self, reason: str, *, is_unexpected: bool = False) -> None:
        self.is_unexpected = is_unexpected
        super().__init__(reason)


def read(handle: DomainHandle, domain: Domain, monitor: Monitor | None) -> bytes | None:
    """Return the variables of UEFI firmware: without them a guest may not find its boot loader.

    ``monitor`` is that of the domain's QEMU, None if it is off. Returns None for a domain without NVRAM.
    Raises NvramError.
    """
    path, is_local = domain.nvram_path, handle.host.is_local
    if path is None and domain.nvram_trouble == domain_xml.NVRAM_UNNAMED and monitor is None and is_local:
        path = _unnamed_nvram(handle, domain)
    if path is None:
        if domain.nvram_trouble is None:
            return None
        while_off = (
            "; a backup of the running domain has them" if domain.nvram_trouble == domain_xml.NVRAM_UNNAMED else ""
        )
        raise NvramError(domain.nvram_trouble + while_off)
    if not is_local:
        raise NvramError(f"the NVRAM store {path} is on another host", is_unexpected=True)
    try:
        return _read_nvram(Path(path).resolve(), monitor)
    except OSError as err:
        is_huge = err.errno == errno.EFBIG
        why = "is larger than any firmware's" if is_huge else f"cannot be read: {err.strerror or err}"
        reason = f"the NVRAM store {path} {why}"
        raise NvramError(reason, is_unexpected=True) from err


def _unnamed_nvram(handle: DomainHandle, domain: Domain) -> str | None:
    """Return the store that libvirt opens at the next start if its definition does not name one, if that is there.

    qemuDomainNVRAMPathFormat of libvirt 9.0: NAME_VARS.fd in the driver's directory.
    """
    uri = urlsplit(handle.host.real_uri)
    if handle.host.is_embedded:
        directory = Path(parse_qs(uri.query).get("root", [""])[0]) / "lib/qemu/nvram"
    elif uri.path == "/system":
        directory = Path("/var/lib/libvirt/qemu/nvram")
    else:
        return None
    path = directory / f"{domain.name}_VARS.fd"
    return str(path) if is_regular(path) else None


def _read_nvram(path: Path, monitor: Monitor | None) -> bytes:
    """Return the content of the store at one moment, although the guest may write to it.

    Two readings are the same. QEMU keeps tables of a qcow2 image in its cache, so it is asked to write them before each
    reading. Raises OSError, NvramError.
    """
    before: bytes | None = None
    image_format = _format_of(path)
    for _ in range(MAX_READINGS):
        if image_format is BlockDriver.QCOW2 and monitor is not None:
            _flush(path, monitor)
        data = read_regular(path, max_bytes=MAX_NVRAM_BYTES)
        if data == before:
            return data
        before = data
    raise NvramError(f"the NVRAM store {path} changed each time it was read", is_unexpected=True)


def _format_of(path: Path) -> BlockDriver:
    """Return the format of the store by its first bytes; a firmware volume begins with zeros.

    Raises OSError, NvramError.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        if file.read(len(qcow2.MAGIC)) != qcow2.MAGIC:
            return BlockDriver.RAW
    try:
        header = qcow2.header(path)
    except ChainError as err:
        raise NvramError(str(err).rstrip("."), is_unexpected=True) from err
    if header.backing_file is not None or header.has_data_file or header.encrypted:
        raise NvramError(f"the NVRAM store {path} has a part of its data in another file, or is encrypted")
    return BlockDriver.QCOW2


def _flush(path: Path, monitor: Monitor) -> None:
    """Let QEMU write what it caches of the store, which is the file at that real path.

    Raises NvramError if it does not have it open or cannot write.
    """
    for entry in objects(monitor.execute("query-block"), "query-block", MalformedError):
        image = entry.object("inserted").optional_text("file") if "inserted" in entry else None
        device = entry.optional_text("qdev")
        if image is not None and os.path.realpath(image) == str(path) and device is not None:
            try:
                # QMP has no command that flushes a node without changing it.
                said = monitor.execute("human-monitor-command", {"command-line": f"qemu-io -d {device} flush"})
            except QmpError as err:
                said = err.description
            if said:
                raise NvramError(f"QEMU could not write the tables of the NVRAM store {path}", is_unexpected=True)
            return
    raise NvramError(f"QEMU does not have the NVRAM store {path} open", is_unexpected=True)
