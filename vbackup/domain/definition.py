"""Read what belongs to a domain apart from its disks: XML, NVRAM store, and the versions of what it runs on."""

from __future__ import annotations

from pathlib import Path

import vbackup
from vbackup.domain.host import DomainHandle
from vbackup.errors import MalformedError
from vbackup.fields import Fields
from vbackup.model import Domain
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter

#: NVRAM stores of UEFI firmware are well under 1 MiB.
MAX_NVRAM_BYTES = 64 * 1024 * 1024


def files(handle: DomainHandle, domain: Domain, reporter: Reporter) -> dict[str, bytes]:
    """Return the contents of a backup's further files, by name; a warning reports what cannot be read."""
    found = {"domain.xml": handle.definition_xml().encode()}
    nvram = _nvram(handle, domain, reporter)
    if nvram is not None:
        found["nvram"] = nvram
    return found


def versions(handle: DomainHandle, monitor: Monitor) -> dict[str, str]:
    """Return the versions of vbackup, QEMU and libvirt."""
    return {
        "vbackup": vbackup.__version__,
        "qemu": _qemu_version(monitor),
        "libvirt": handle.host.libvirt_version,
    }


def _nvram(handle: DomainHandle, domain: Domain, reporter: Reporter) -> bytes | None:
    """Return the variables of UEFI firmware: without them a guest may not find its boot loader."""
    path = domain.nvram_path
    if path is None:
        return None
    if not handle.host.is_local:
        reporter.warning(f"The NVRAM store {path} is on another host and is not in the backup.")
        return None
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_NVRAM_BYTES + 1)
    except OSError as err:
        reporter.warning(f"The NVRAM store {path} cannot be read and is not in the backup: {err.strerror}.")
        return None
    if len(data) > MAX_NVRAM_BYTES:
        reporter.warning(f"The NVRAM store {path} is larger than any firmware's and is not in the backup.")
        return None
    return data


def _qemu_version(monitor: Monitor) -> str:
    version = Fields(monitor.execute("query-version"), "query-version", MalformedError).object("qemu")
    return ".".join(str(version.integer(part)) for part in ("major", "minor", "micro"))
