"""QEMU's own arguments in a domain XML (<qemu:commandline>): which of them can give the guest storage of the host.

libvirt passes them on without a look, so a drive among them is in no list of disks.
Arguments: QEMU's qemu-options.hx.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

#: Options that give the guest no storage, and make QEMU write no file.
_HARMLESS = frozenset(
    [
        "accel",
        "acpitable",
        "action",
        "append",
        "bios",
        "boot",
        "compat",
        "cpu",
        "cpu-pm",
        "display",
        "dtb",
        "enable-kvm",
        "fw_cfg",
        "gdb",
        "global",
        "icount",
        "initrd",
        "k",
        "kernel",
        "L",
        "m",
        "M",
        "machine",
        "mem-prealloc",
        "monitor",
        "mon",
        "msg",
        "name",
        "net",
        "netdev",
        "nic",
        "no-acpi",
        "no-fd-bootchk",
        "no-hpet",
        "no-reboot",
        "no-shutdown",
        "no-user-config",
        "nodefaults",
        "nographic",
        "numa",
        "only-migratable",
        "option-rom",
        "overcommit",
        "prom-env",
        "qmp",
        "qmp-pretty",
        "rtc",
        "run-with",
        "s",
        "S",
        "sandbox",
        "seed",
        "semihosting",
        "set",
        "smbios",
        "smp",
        "spice",
        "tb-size",
        "uuid",
        "vga",
        "vnc",
        "watchdog-action",
        "win2k-hack",
    ]
)
#: Options with a character device in short form, and the kinds of it that write a file or a device of the host.
_CHARDEVS = ("serial", "parallel", "debugcon", "monitor", "qmp", "qmp-pretty", "gdb")
_TO_STORAGE = ("file", "pipe", "serial", "parallel", "tty", "parport", "/")
#: Beginnings of the names of devices whose storage is not a block node of QEMU.
_DEVICES = (
    "vfio", "usb-host", "usb-mtp", "vhost-user", "vhost-scsi", "vhost-vdpa", "virtio-9p", "virtio-pmem", "nvdimm",
    "ivshmem", "tpm", "acpi-erst", "pc-dimm", "uefi-vars",
)  # fmt: skip
#: Objects that write a file.
_OBJECTS = ("memory-backend-file", "memory-backend-shm", "filter-dump", "colo", "vfio-user", "x-remote", "x-vfio")


def storage(arguments: Sequence[str]) -> list[str]:
    """Return the options that can give the guest storage of the host or write a file, each once, such as "-drive".

    An option that is not known here counts as one. Values are not returned: they can hold passwords.
    """
    found = (f"-{name}" for name, value in _options(arguments) if _is_storage(name, value))
    return list(dict.fromkeys(found))


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each option; an argument that is no option's value is a disk image for QEMU."""
    index = 0
    while index < len(arguments):
        name = arguments[index].removeprefix("-").removeprefix("-")
        if name == arguments[index]:
            yield "hda", name  # QEMU's own reading of a lone argument
            index += 1
            continue
        has_value = index + 1 < len(arguments) and not arguments[index + 1].startswith("-")
        yield name, arguments[index + 1] if has_value else ""
        index += 2 if has_value else 1


def _is_storage(name: str, value: str) -> bool:
    if name in _CHARDEVS:
        return value.removeprefix("mon:").startswith(_TO_STORAGE)
    if name in ("audio", "audiodev"):
        return _kind(value, "driver") == "wav"
    if name == "chardev":
        return _kind(value, "backend").startswith(_TO_STORAGE)
    if name == "device":
        return _kind(value, "driver").startswith(_DEVICES)
    if name == "object":
        return _kind(value, "qom-type").startswith(_OBJECTS)
    return name not in _HARMLESS


def _kind(value: str, member: str) -> str:
    """Return the driver or type that a value names: its first word, or the member of that name, also in JSON."""
    if value.startswith("{"):
        try:
            return str(json.loads(value).get(member, ""))
        except (ValueError, RecursionError):
            return _DEVICES[0]  # not readable: as if it were one
    first, *others = value.split(",")
    named = [part.partition("=")[2] for part in (first, *others) if part.startswith(f"{member}=")]
    return named[-1] if named else first
