"""Read what belongs to a domain apart from its disks: XML, NVRAM store, host, and the versions of what it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import vbackup
from vbackup import machine
from vbackup.domain import domain_xml, nvram, restored_xml
from vbackup.domain.host import DomainHandle
from vbackup.domain.nvram import NvramError
from vbackup.errors import MalformedError
from vbackup.fields import Fields
from vbackup.model import LIVE_XML, Domain, HostIdentity, LeftOut
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter


@dataclass(frozen=True)
class Further:
    """What a backup has of a domain apart from its disks, and what it has not."""

    files: Mapping[str, bytes]  #: contents by name: domain.xml, live.xml, nvram
    left_out: tuple[LeftOut, ...]


def further(handle: DomainHandle, domain: Domain, monitor: Monitor, *, is_running: bool, reporter: Reporter) -> Further:
    """Return the contents of a backup's further files, and what of the domain's definition is not in the backup.

    A warning reports an NVRAM store that should be there and cannot be read. Raises what libvirt's calls raise.
    """
    definition = handle.definition_xml()
    found = {"domain.xml": definition.encode()}
    left_out: list[LeftOut] = []
    if is_running:
        found[LIVE_XML] = domain.xml.encode()
        left_out += restored_xml.only_defined(definition, domain.xml)
        known = {(state.kind, state.dev) for state in domain.host_state}
        left_out += [state for state in domain_xml.parse(definition).host_state if (state.kind, state.dev) not in known]
    try:
        variables = nvram.read(handle, domain, monitor if is_running else None)
    except NvramError as err:
        left_out.append(LeftOut("nvram", str(err), kind="nvram"))
        if err.is_unexpected:
            reporter.warning(f"The NVRAM is not in the backup: {err}.")
    else:
        if variables is not None:
            found["nvram"] = variables
    return Further(found, tuple(left_out))


def host_of(handle: DomainHandle) -> HostIdentity:
    """Return the host that the domain is on. Raises what libvirt's calls raise if that is another one."""
    return machine.this_host() if handle.host.is_local else HostIdentity(handle.host.hostname, None)


def versions(handle: DomainHandle, monitor: Monitor) -> dict[str, str]:
    """Return the versions of vbackup, QEMU and libvirt."""
    return {
        "vbackup": vbackup.__version__,
        "qemu": _qemu_version(monitor),
        "libvirt": handle.host.libvirt_version,
    }


def _qemu_version(monitor: Monitor) -> str:
    version = Fields(monitor.execute("query-version"), "query-version", MalformedError).object("qemu")
    return ".".join(str(version.integer(part)) for part in ("major", "minor", "micro"))
