"""What else of the host a domain uses to keep data, beside its disks: TPM, NVDIMM, shared folders, devices and more.

What vbackup does not back up is named in the result of a backup (``left_out``), and restored domains do not get it
(vbackup.domain.restored_xml), because they would write to what belongs to the original. What it does back up
(vbackup.domain.machine_state) is found here too: a backup need not have it.

The list is that of libvirt's schema (domaincommon.rng, every element that can name a file, a directory or a device),
without what comes with the host's packages and is only read: ROM images, ACPI tables, templates. Kernels that the host
boots the guest with are in it, because an upgrade in the guest does not change them and no other host has them. Files
that a domain only writes as output are no state of it: see restored_xml.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbackup.domain import qemu_arguments
from vbackup.model import LeftOut, MachineKind

if TYPE_CHECKING:
    from lxml import etree

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
NOT_IN_BACKUP = "not in the backup"


@dataclass(frozen=True)
class HostState:
    """An element of the domain XML that stands for data on the host."""

    element: etree._Element
    name: str  #: unique enough for a person: "tpm", "filesystem share"
    reason: str  #: what it is and where, and that it is not in the backup
    is_only_read: bool = False  #: the guest cannot write to it, or it is no place at all
    machine: MachineKind | None = None  #: what of a backup has it (vbackup.domain.machine_state)

    @property
    def left_out(self) -> LeftOut:
        """The entry for the result."""
        return LeftOut(self.name, self.reason, kind=_tag(self.element))


def find(root: etree._Element) -> list[HostState]:
    """Return all that the domain uses of the host to keep data, apart from disks and NVRAM, in a fixed order."""
    finders = (
        *(_firmware, _direct_boot, _tpm, _memory, _filesystems),
        *(_shared_memory, _host_devices, _pstore, _arguments, _secure),
    )
    return [state for finder in finders for state in finder(root)]


def needs_nvram(root: etree._Element) -> bool:
    """Return True if the domain's UEFI firmware stores variables in an NVRAM file, named in the XML or not."""
    system, loader = root.find("os"), root.find("os/loader")
    if system is None or system.find("varstore") is not None:
        return False
    if system.find("nvram") is not None:
        return True
    # libvirt chooses both together: firmware that it has chosen and that has no store needs none.
    has_chosen = loader is not None and (loader.get("stateless") == "yes" or bool(_words(loader)))
    return system.get("firmware") == "efi" and not has_chosen


def _firmware(root: etree._Element) -> Iterator[HostState]:
    loader = root.find("os/loader")
    # QEMU opens a pflash for writing unless the XML says readonly='yes'.
    if loader is not None and loader.get("type") == "pflash" and loader.get("readonly") != "yes" and _words(loader):
        yield HostState(
            loader, "loader", f"firmware that the guest can write to ({_words(loader)}): it is {NOT_IN_BACKUP}"
        )
    for store in root.iterfind("os/varstore"):
        where = f" ({store.get('path')})" if store.get("path") else ""
        reason = f"UEFI variables in a varstore{where}: they are {NOT_IN_BACKUP}"
        yield HostState(store, "varstore", reason, machine=MachineKind.VARSTORE)


def _direct_boot(root: etree._Element) -> Iterator[HostState]:
    for name, what in (("kernel", "kernel"), ("initrd", "initial RAM disk"), ("dtb", "device tree")):
        for element in root.iterfind(f"os/{name}"):
            reason = f"{what} of the host that the guest boots ({_words(element)}): it is {NOT_IN_BACKUP}"
            if _words(element):
                yield HostState(element, name, reason, is_only_read=True, machine=MachineKind(name))


def _tpm(root: etree._Element) -> Iterator[HostState]:
    for tpm in root.iterfind("devices/tpm"):
        backend = tpm.find("backend")
        kind = backend.get("type", "") if backend is not None else ""
        if kind == "emulator":
            reason = f"emulated TPM: its state, such as keys of encrypted guest disks, is {NOT_IN_BACKUP}"
        else:
            reason = f"TPM of type {kind or 'unknown'}: its state is {NOT_IN_BACKUP}"
        yield HostState(tpm, "tpm", reason, machine=MachineKind.TPM if kind == "emulator" else None)


def _memory(root: etree._Element) -> Iterator[HostState]:
    for memory in root.iterfind("devices/memory"):
        path = memory.findtext("source/path")
        if path:
            yield HostState(
                memory,
                f"memory {path}",
                f"{memory.get('model')} device: its data is {NOT_IN_BACKUP}",
                is_only_read=memory.find("target/readonly") is not None,
            )


def _filesystems(root: etree._Element) -> Iterator[HostState]:
    for filesystem in root.iterfind("devices/filesystem"):
        kind, target = filesystem.get("type", "mount"), filesystem.find("target")
        if kind == "ram":
            continue
        tag = target.get("dir") if target is not None else None
        yield HostState(
            filesystem,
            f"filesystem {tag or '?'}",
            f"shared folder of the host ({_where(filesystem) or kind}): its files are {NOT_IN_BACKUP}",
            is_only_read=filesystem.find("readonly") is not None,
        )


def _shared_memory(root: etree._Element) -> Iterator[HostState]:
    for shmem in root.iterfind("devices/shmem"):
        yield HostState(
            shmem, f"shmem {shmem.get('name')}", f"memory shared with other programs: it is {NOT_IN_BACKUP}"
        )


def _host_devices(root: etree._Element) -> Iterator[HostState]:
    for device in root.iterfind("devices/hostdev"):
        kind = device.get("type", "")
        if kind == "mdev" and device.get("model") in ("vfio-pci", "vfio-ap"):
            continue  # a part of a graphics or cryptography adapter; vfio-ccw is a disk
        yield HostState(
            device,
            " ".join(["hostdev", kind, *_source_words(device)]),
            f"device of the host that is passed through to the guest: data on it is {NOT_IN_BACKUP}",
            is_only_read=kind == "scsi" and device.find("readonly") is not None,
        )


def _source_words(device: etree._Element) -> list[str]:
    """Return what tells a host device from others: its path, name, ids or address."""
    source = device.find("source")
    if source is None:
        return []
    values = [value for name, value in source.items() if name not in ("startupPolicy", "type", "mode")]
    for part in source.iterfind("*"):
        found = [value for name, value in part.items() if name not in ("type", "guestReset")]
        values += [":".join(map(str, found))] if found else []
    return [str(value) for value in values]


def _pstore(root: etree._Element) -> Iterator[HostState]:
    for pstore in root.iterfind("devices/pstore"):
        yield HostState(pstore, "pstore", f"store for the guest's crash records: it is {NOT_IN_BACKUP}")


def _arguments(root: etree._Element) -> Iterator[HostState]:
    for commandline in root.iterfind(f"{QEMU}commandline"):
        arguments = [argument.get("value", "") for argument in commandline.iterfind(f"{QEMU}arg")]
        options = qemu_arguments.storage(arguments)
        if options:
            reason = f"arguments for QEMU that libvirt does not know ({', '.join(options)}): what they name on the host"
            yield HostState(commandline, "qemu:commandline", f"{reason} is {NOT_IN_BACKUP}")


def _secure(root: etree._Element) -> Iterator[HostState]:
    for security in root.iterfind("launchSecurity"):
        reason = "launch security: its keys can be bound to the processor of this host, and they are"
        yield HostState(
            security,
            f"launchSecurity {security.get('type', '')}".rstrip(),
            f"{reason} {NOT_IN_BACKUP}",
            is_only_read=True,
        )


def _where(element: etree._Element) -> str | None:
    """Return the place that its <source> names, in the words of the XML, or None."""
    source = element.find("source")
    if source is None:
        return None
    names = ("dir", "file", "dev", "socket", "volume", "name", "wwpn", "protocol")
    return next((source.get(name) for name in names if source.get(name)), None)


def _words(element: etree._Element) -> str:
    return (element.text or "").strip()


def _tag(element: etree._Element) -> str:
    """Return the name of the element as it stands in the XML, with the prefix of QEMU's own."""
    return str(element.tag).replace(QEMU, "qemu:")
