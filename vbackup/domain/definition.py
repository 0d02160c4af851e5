"""Read what belongs to a domain apart from its disks: XML, machine, host, and the versions of what it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import vbackup
from vbackup import machine
from vbackup.domain import domain_xml, machine_state, machine_xml, restored_xml
from vbackup.domain.host import DomainHandle
from vbackup.domain.machine_state import Found, Unsaved
from vbackup.errors import MalformedError
from vbackup.fields import Fields
from vbackup.model import LIVE_XML, Domain, HostIdentity, LeftOut
from vbackup.qemu.monitor import Monitor


@dataclass(frozen=True)
class Further:
    """What a backup has of a domain apart from its disks, and what it has not."""

    files: Mapping[str, bytes]  #: contents by name: domain.xml, live.xml
    left_out: tuple[LeftOut, ...]
    machine: tuple[Found, ...] = ()  #: files that are yet to be read
    unsaved: tuple[Unsaved, ...] = ()  #: what of the machine cannot be had
    autostart: bool | None = None  #: whether libvirt starts it with the host; None if libvirt does not say
    loader: str | None = None  #: path of its UEFI firmware


def further(
    handle: DomainHandle, domain: Domain, monitor: Monitor, *, is_running: bool, with_media: bool = False
) -> Further:
    """Return what belongs to the backup apart from disks, and what of the domain's definition is not in it.

    ``with_media``: media in CD-ROM and floppy drives belong to it. Raises what libvirt's calls raise.
    """
    definition = handle.definition_xml()
    found = {"domain.xml": definition.encode()}
    left_out: list[LeftOut] = []
    if is_running:
        found[LIVE_XML] = domain.xml.encode()
        left_out += restored_xml.only_defined(definition, domain.xml)
        known = {(state.kind, state.dev) for state in domain.host_state}
        left_out += [state for state in domain_xml.parse(definition).host_state if (state.kind, state.dev) not in known]
    machine = machine_state.find(handle, domain, definition, monitor if is_running else None, with_media=with_media)
    return Further(
        found,
        tuple(left_out),
        machine=tuple(machine.found),
        unsaved=tuple(machine.unsaved),
        autostart=handle.autostart(),
        loader=machine_xml.loader(domain.xml) or machine_xml.loader(definition),
    )


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
