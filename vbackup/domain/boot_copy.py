"""Make the XML of the transient copy of a domain that a boot test starts: the same machine, which reaches nothing.

What is not known to do no harm is not in the copy. Its disks are exports of a storage daemon; its network cards are
there, without a network; its consoles end in sockets of vbackup. It has neither devices nor folders of the host, no
graphics server, no port, and nothing with a name or path of the original's. vbackup.domain.restored_xml decides which
disks it has, as for a restore. A TPM has a copy of its state (vbackup.operations.boot_tpm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from lxml import etree

from vbackup.domain import host_state, restored_xml
from vbackup.domain.domain_xml import AGENT_CHANNEL, check_path, dev_of, point_nvram, root_of, text_of
from vbackup.domain.machine_xml import Places
from vbackup.errors import MalformedError
from vbackup.model import ImageFormat, MachineKind
from vbackup.names import BOOT_COPY_PREFIX

#: Files of the host that a direct boot starts from, below <os>.
BOOT_FILES = ("kernel", "initrd", "dtb")
_KIB = 1024

# fmt: off
#: What of the domain is in the copy.
_TOP = frozenset([
    "name", "uuid", "memory", "currentMemory", "maxMemory", "vcpu", "vcpus", "iothreads", "iothreadids",
    "defaultiothread", "sysinfo", "os", "features", "cpu", "clock", "on_poweroff", "on_reboot", "on_crash", "pm",
    "genid", "keywrap", "devices",
])
#: Parts of <os> that are in the copy: the others name files of the host.
_SYSTEM = frozenset([
    "type", "loader", "nvram", "boot", "bootmenu", "smbios", "bios", "firmware", "cmdline", "kernel", "initrd", "dtb",
])
#: What a domain can have more than once; libvirt would read the second of anything else, too, which is not reworked.
_REPEATED = frozenset(["sysinfo"])
#: Devices that are in the copy as they are.
_AS_THEY_ARE = frozenset(["controller", "hub", "panic", "memballoon", "iommu"])
#: What of a disk is about its device, and of its <driver> about how QEMU offers it.
_OF_DISK = frozenset([
    "target", "address", "boot", "serial", "wwn", "vendor", "product", "alias", "blockio", "geometry",
])
_OF_DISK_DRIVER = (
    "queues", "queue_size", "iothread", "iommu", "ats", "packed", "page_per_vq", "event_idx", "ioeventfd",
)
# fmt: on
_OF_INTERFACE = frozenset(["mac", "model", "address", "alias", "acpi"])
_OF_PORT = frozenset(["target", "address", "alias"])
_OF_TPM = frozenset(["backend", "address", "alias"])


@dataclass(frozen=True)
class Place:
    """Where the copy has what belongs to it."""

    nbd_socket: str  #: each disk is exported there under its dev
    consoles: str  #: directory of the consoles' sockets
    boot_files: Mapping[str, str] = field(default_factory=dict)  #: paths by BOOT_FILES
    nvram: str = ""  #: path of its UEFI variables, if it has such a file
    nvram_format: ImageFormat | None = None  #: None: libvirt makes a new file
    has_tpm: bool = False  #: libvirt has a state for its emulated TPM
    why_no_tpm: str | None = None  #: why it has none, although the backup has one


@dataclass(frozen=True)
class BootCopy:
    """The definition of a copy."""

    name: str
    uuid: str
    xml: str
    remarks: tuple[str, ...]  #: what the original has and the copy has not, as sentences
    has_agent: bool  #: there is a channel for the guest agent
    has_screen: bool
    consoles: tuple[str, ...]  #: paths of the sockets, which must be listened on before it starts
    has_nvram: bool
    is_direct_boot: bool
    firmware: str | None  #: path of the host, which QEMU reads


def boot_files(definition: str) -> dict[str, str]:
    """Return the files of the host that the domain boots directly, by BOOT_FILES. Raises MalformedError."""
    root = root_of(definition)
    found = ((name, (root.findtext(f"os/{name}") or "").strip()) for name in BOOT_FILES)
    return {name: path for name, path in found if path}


def make(
    definition: str,
    live: str | None,
    devs: Mapping[str, str | None],
    place: Place,
    *,
    uuid: str,
    max_memory_bytes: int,
) -> BootCopy:
    """Return the copy, with that UUID, of a domain with the disks ``devs``, each with the path of its original image.

    ``definition`` and ``live`` are those of a backup (see restored_xml.rework). Raises MalformedError if a text is no
    domain XML, UsageError if a path cannot be written in XML.
    """
    for path in (place.nbd_socket, place.consoles, place.nvram, *place.boot_files.values()):
        check_path(path)
    # With the place of its state, an emulated TPM stays; libvirt has the state where it keeps those by itself.
    places = Places({MachineKind.TPM: place.consoles} if place.has_tpm else {})
    reworked = restored_xml.rework(definition, live, devs, output=place.consoles, keep_others=False, places=places)
    root = root_of(reworked.text)
    etree.strip_tags(root, etree.Comment, etree.ProcessingInstruction)  # libvirt joins the text around one
    left_out = [left for left in reworked.left_out if left.kind not in _PORTS]
    left_out += [left for left in reworked.shared if left.kind == "disk"]
    remarks = [f"{left.dev}: {(left.kind == 'tpm' and place.why_no_tpm) or left.reason}" for left in left_out]
    name = f"{BOOT_COPY_PREFIX}{uuid.partition('-')[0]}"
    remarks += _keep(root)
    _forget_files(root)
    _identify(root, name, uuid)
    _limit_memory(root, max_memory_bytes)
    _direct_boot(root, place.boot_files)
    if reworked.has_nvram:
        point_nvram(root, place.nvram, place.nvram_format)
    devices = root.find("devices")
    assert devices is not None  # a domain with disks has them
    consoles: list[str] = []
    has_serial = devices.find("serial") is not None
    for device in list(devices):
        if isinstance(device.tag, str) and not _is_kept(device, place, devs, consoles, has_serial=has_serial):
            devices.remove(device)
    target = devices.find(f"channel/target[@name='{AGENT_CHANNEL}']")
    models = [model.get("type") for model in devices.iterfind("video/model")]
    return BootCopy(
        name,
        uuid,
        text_of(root),
        tuple(remarks),
        has_agent=target is not None,
        has_screen=any(model != "none" for model in models),
        consoles=tuple(consoles),
        has_nvram=reworked.has_nvram,
        is_direct_boot=root.find("os/kernel") is not None,
        firmware=root.findtext("os/loader") or None,
    )


def _keep(root: etree._Element) -> Iterator[str]:
    """Keep of the domain what describes the machine; yield what is removed that its guest might miss."""
    seen: set[str] = set()
    for element in list(root):
        if element.tag in _TOP:
            if element.tag in seen - _REPEATED:
                raise MalformedError(f"The domain XML has a second <{element.tag}>, which libvirt never writes.")
            seen.add(str(element.tag))
            continue
        root.remove(element)
        if element.tag in (f"{host_state.QEMU}commandline", f"{host_state.QEMU}override"):
            yield f"{element.tag.replace(host_state.QEMU, 'qemu:')}: arguments for QEMU are not in the copy"
        if element.tag == "launchSecurity":
            yield "launchSecurity: the copy runs without it"


def _forget_files(root: etree._Element) -> None:
    """Remove what QEMU or libvirt would read of the host for the firmware, apart from what packages bring."""
    system = root.find("os")
    for element in list(system) if system is not None else ():
        if not isinstance(element.tag, str) or element.tag not in _SYSTEM:
            system.remove(element)  # type: ignore[union-attr]
    loaders = root.findall("os/loader")
    for another in loaders[1:]:
        another.getparent().remove(another)  # type: ignore[union-attr]
    for loader in loaders[:1]:
        _retain(loader, frozenset(), attributes=tuple(map(str, loader.attrib)))
    for nvram in root.iterfind("os/nvram"):
        template = nvram.get("template", "")
        if not template.startswith("/usr/share/") or ".." in template:  # libvirtd reads it as root
            nvram.attrib.pop("template", None)
    for element in root.findall("sysinfo"):
        if element.get("type") == "fwcfg":
            root.remove(element)  # it can name files of the host
    for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
        entry.getparent().remove(entry)  # type: ignore[union-attr]


def _identify(root: etree._Element, name: str, uuid: str) -> None:
    root.attrib.pop("id", None)
    for tag, text in (
        ("name", name), ("uuid", uuid), ("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")
    ):  # fmt: skip
        element = root.find(tag)
        if element is None:
            element = etree.SubElement(root, tag)
        element.text = text
    for processors in root.iterfind("vcpu"):
        processors.attrib.pop("cpuset", None)
    for cell in root.iterfind("cpu/numa/cell"):
        cell.attrib.pop("memAccess", None)  # it needs what <memoryBacking> has


def _limit_memory(root: etree._Element, max_bytes: int) -> None:
    """Give the copy the domain's memory, or ``max_bytes`` if that is less, in one piece then."""
    memory = root.find("memory")
    if memory is None:
        memory = etree.SubElement(root, "memory")
        memory.text = "0"  # libvirt takes that of the NUMA cells
    cells = [(cell.get("memory", ""), cell.get("unit")) for cell in root.iterfind("cpu/numa/cell")]
    sizes = root.iterfind("devices/memory[@model='dimm']/target/size")
    parts = [*cells, *((_joined(size), size.get("unit")) for size in sizes)]
    if max(_bytes(_joined(memory), memory.get("unit")), sum(_bytes(*part) for part in parts)) <= max_bytes:
        return
    for parent, tag in (("cpu", "numa"), (".", "maxMemory"), ("devices", "memory"), (".", "currentMemory")):
        for element in root.findall(f"{parent}/{tag}"):
            element.getparent().remove(element)  # type: ignore[union-attr]
    memory.clear()
    memory.set("unit", "KiB")
    memory.text = str(max_bytes // _KIB)


_UNITS = {"b": 1, "bytes": 1, "kb": 10**3, "k": _KIB, "kib": _KIB, "mb": 10**6, "m": _KIB**2, "mib": _KIB**2}
_UNITS |= {"gb": 10**9, "g": _KIB**3, "gib": _KIB**3, "tb": 10**12, "t": _KIB**4, "tib": _KIB**4}


def _joined(element: etree._Element) -> str:
    """Return the text of an element as libvirt reads it, with that of what is in it."""
    return "".join(map(str, element.itertext()))


def _bytes(text: str, unit: str | None) -> int:
    text, unit = text.strip(), (unit or "KiB").lower()
    if not text.isdecimal() or len(text) > 20 or unit not in _UNITS:  # noqa: PLR2004 - no memory has that many digits
        raise MalformedError(f"The domain XML has a <memory> of {text} {unit}, which is not valid.")
    return int(text) * _UNITS[unit]


def _direct_boot(root: etree._Element, paths: Mapping[str, str]) -> None:
    for name in BOOT_FILES:
        for element in root.findall(f"os/{name}"):
            if name in paths:
                element.text = paths[name]
            else:
                element.getparent().remove(element)  # type: ignore[union-attr]


# devices


def _is_kept(
    device: etree._Element, place: Place, devs: Mapping[str, str | None], consoles: list[str], *, has_serial: bool
) -> bool:
    """Rework a device for the copy, and return whether it is in it at all."""
    if device.tag == "disk":
        return _rework_disk(device, place, devs)
    if device.tag in ("serial", "console", "parallel", "channel"):
        return _rework_port(device, place, consoles, has_serial=has_serial)
    rework = _REWORKED.get(str(device.tag))
    if rework is not None:
        return rework(device)
    return device.tag in _AS_THEY_ARE


def _rework_disk(disk: etree._Element, place: Place, devs: Mapping[str, str | None]) -> bool:
    """Let a disk of the backup be an export of the storage daemon; empty the other drives."""
    device, dev = disk.get("device", "disk"), dev_of(disk)
    if device in ("cdrom", "floppy"):
        _retain(disk, _OF_DISK, attributes=("device",))
        disk.set("type", "file")
        if device == "cdrom":
            etree.SubElement(disk, "readonly")
        return True
    if dev not in devs:
        return False
    driver = disk.find("driver")
    options = (
        {} if driver is None else {name: driver.get(name, "") for name in _OF_DISK_DRIVER if name in driver.attrib}
    )
    _retain(disk, _OF_DISK, attributes=("device", "model"))
    disk.set("type", "network")
    # What the guest stores is thrown away: a flush would only cost time.
    disk.insert(0, etree.Element("driver", name="qemu", type="raw", cache="unsafe", discard="unmap"))
    disk[0].attrib.update(options)
    source = etree.Element("source", protocol="nbd", name=dev)
    etree.SubElement(source, "host", transport="unix", socket=place.nbd_socket)
    disk.insert(1, source)
    return True


def _rework_port(port: etree._Element, place: Place, consoles: list[str], *, has_serial: bool) -> bool:
    """Let consoles end in a socket of vbackup, the agent's channel in one of libvirt's, and other ports nowhere."""
    target = port.find("target")
    kind = target.get("type", "") if target is not None else ""
    if port.tag == "console" and has_serial and kind in ("", "serial"):
        return False  # libvirt's second name for the first serial port
    if port.tag == "channel" and kind != "virtio":
        return False
    is_agent = port.tag == "channel" and target is not None and target.get("name") == AGENT_CHANNEL
    _retain(port, _OF_PORT, attributes=())
    if target is not None:
        target.attrib.pop("state", None)
    if is_agent:
        port.set("type", "unix")
    elif port.tag in ("serial", "console"):
        path = f"{place.consoles}/console{len(consoles)}"
        port.set("type", "unix")
        port.insert(0, etree.Element("source", mode="connect", path=path))
        consoles.append(path)
    else:
        port.set("type", "null")
    return True


def _rework_interface(interface: etree._Element) -> bool:
    """Keep the card and its address, but with no link to QEMU's own network, the only one that needs nothing."""
    if interface.get("type") == "hostdev":
        return False
    _retain(interface, _OF_INTERFACE, attributes=())
    interface.set("type", "user")
    etree.SubElement(interface, "link", state="down")
    return True


def _rework_video(video: etree._Element) -> bool:
    """Let QEMU draw by itself: neither a graphics processor of the host nor another process helps it."""
    for element in video.findall("model/acceleration"):
        element.getparent().remove(element)  # type: ignore[union-attr]
    for driver in video.findall("driver"):
        driver.attrib.pop("name", None)
    return True


def _rework_memory(memory: etree._Element) -> bool:
    for source in memory.findall("source"):
        memory.remove(source)
    return memory.get("model") == "dimm"


def _rework_input(device: etree._Element) -> bool:
    return device.get("type") in ("mouse", "keyboard", "tablet")


def _rework_tpm(tpm: etree._Element) -> bool:
    """Keep a TPM that has a state: an emulated one, whose state goes with the copy."""
    backend = tpm.find("backend")
    if backend is None or backend.get("type") != "emulator":
        return False
    _retain(tpm, _OF_TPM, attributes=("model",))
    _retain(backend, frozenset(["encryption"]), attributes=("type", "version"))
    return True


def _rework_rng(rng: etree._Element) -> bool:
    for backend in rng.findall("backend"):
        rng.remove(backend)
    backend = etree.SubElement(rng, "backend", model="random")
    backend.text = "/dev/urandom"
    return True


def _rework_watchdog(watchdog: etree._Element) -> bool:
    watchdog.set("action", "none")
    return True


_REWORKED: Mapping[str, Callable[[etree._Element], bool]] = {
    "interface": _rework_interface,
    "video": _rework_video,
    "memory": _rework_memory,
    "input": _rework_input,
    "rng": _rework_rng,
    "tpm": _rework_tpm,
    "watchdog": _rework_watchdog,
}
#: Kinds of devices whose output files a restore moves, and that end elsewhere here.
_PORTS = ("serial", "console", "parallel", "channel", "audio", "backend", "interface")


def _retain(device: etree._Element, children: frozenset[str], *, attributes: tuple[str, ...]) -> None:
    """Remove all attributes and children but these; an alias stays if it is the user's own."""
    for name in set(device.attrib) - set(attributes):
        del device.attrib[name]
    for child in list(device):
        is_libvirts = child.tag == "alias" and not child.get("name", "").startswith("ua-")
        if child.tag not in children or is_libvirts:
            device.remove(child)
