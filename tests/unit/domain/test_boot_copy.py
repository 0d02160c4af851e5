"""The copy that a boot test starts is the same machine, and reaches neither the original nor the host nor a network."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from lxml import etree

from tests.unit.builders import FIXTURES, UUID
from vbackup.domain import boot_copy, domain_xml
from vbackup.domain.boot_copy import BootCopy, Place
from vbackup.errors import MalformedError, UsageError
from vbackup.model import ImageFormat

COPY = "f1234567-0000-4000-8000-000000000001"
GIB = 1024**3
PLACE = Place("/p/nbd", "/p", nvram="/p/nvram", nvram_format=ImageFormat.QCOW2)
DISK = "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/a'/><target dev='vda' bus='virtio'/></disk>"
ALL = sorted(path for path in FIXTURES.rglob("*.xml") if "old" not in path.parts)
#: Paths that are not the copy's own.
PLACES = re.compile(r"/(?!p/|dev/urandom)[a-z]+/[^ <>\"']*")


def make(devices: str = "", more: str = "", *, place: Place = PLACE, **options: Any) -> BootCopy:
    text = f"<domain type='kvm' id='3'><name>web</name><uuid>{UUID}</uuid><memory unit='GiB'>4</memory>{more}"
    return of(f"{text}<devices>{DISK}{devices}</devices></domain>", place=place, **options)


def of(text: str, *, place: Place = PLACE, **options: Any) -> BootCopy:
    devs = {disk.dev: disk.path for disk in domain_xml.parse(text).disks}
    return boot_copy.make(text, None, devs, place, **{"uuid": COPY, "max_memory_bytes": 8 * GIB, **options})


def root(copy: BootCopy) -> etree._Element:
    return etree.fromstring(copy.xml)


def device(copy: BootCopy, tag: str) -> etree._Element:
    found = root(copy).find(f"devices/{tag}")
    assert found is not None
    return found


def text_of(element: etree._Element) -> str:
    return etree.tostring(element, encoding="unicode").strip()


@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_path_of_the_host_is_in_a_copy(path: Any) -> None:
    copy = of(path.read_text())
    paths = set(PLACES.findall(copy.xml.replace("http://libvirt.org/schemas/domain/qemu/1.0", "")))
    assert not [one for one in paths if not one.startswith("/usr/share/OVMF/") and one != "/capture/CODE.fd"]  # to read
    for tag in ("graphics", "filesystem", "hostdev", "redirdev", "shmem", "tpm", "vsock", "lease", "sound", "emulator"):
        assert root(copy).find(f"devices/{tag}") is None
    assert {one.get("type") for one in root(copy).iterfind("devices/disk/source/..")} == {"network"}
    assert "commandline" not in copy.xml
    assert "seclabel" not in copy.xml


def test_identity_is_new() -> None:
    copy = make(more="<title>Web</title><metadata/><seclabel type='static'/><on_reboot>destroy</on_reboot>")
    assert (copy.name, copy.uuid) == ("vbackup-boot-f1234567", COPY)
    found = root(copy)
    assert (found.findtext("name"), found.findtext("uuid"), found.get("id")) == (copy.name, COPY, None)
    assert (found.findtext("on_poweroff"), found.findtext("on_crash")) == ("destroy", "destroy")
    assert found.get("type") == "kvm"
    assert [one.tag for one in found if one.tag in ("title", "metadata", "seclabel")] == []


def test_disk_is_an_export_and_the_device_stays_the_same() -> None:
    devices = (
        "<disk type='block' device='disk' model='virtio-non-transitional'>"
        "<driver name='qemu' type='raw' cache='none' io='native' queues='4' iothread='1'/><source dev='/dev/x'/>"
        "<target dev='vdb' bus='virtio'/><iotune/><boot order='1'/><serial>S</serial><alias name='ua-mine'/>"
        "<encryption/></disk>"
        "<disk type='file' device='cdrom'><driver name='qemu'/><source file='/cd'/><target dev='sda'/></disk>"
    )
    found = root(make(devices))
    first, second, drive = found.findall("devices/disk")
    assert text_of(first) == (
        '<disk type="network"><driver name="qemu" type="raw" cache="unsafe" discard="unmap"/>'
        '<source protocol="nbd" name="vda"><host transport="unix" socket="/p/nbd"/></source>'
        '<target dev="vda" bus="virtio"/></disk>'
    )
    assert (second.get("model"), second.find("driver").attrib["queues"]) == ("virtio-non-transitional", "4")  # type: ignore[union-attr]
    assert [one.tag for one in second] == ["driver", "source", "target", "boot", "serial", "alias"]
    assert "/cd" not in text_of(drive)


def test_disk_that_is_not_in_the_backup_is_said_and_removed() -> None:
    copy = make("<disk type='file'><source file='/b'/><target dev='vdb'/><readonly/></disk>")
    assert [one.find("target").get("dev") for one in root(copy).findall("devices/disk")] == ["vda"]  # type: ignore[union-attr]
    assert copy.remarks == ("vdb: disk /b, which is only read",)


def test_network_card_is_there_without_a_network() -> None:
    copy = make(
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><virtualport/>"
        "<target dev='vnet0'/><model type='virtio'/><driver name='vhost' queues='4'/><filterref filter='x'/>"
        "<boot order='2'/><link state='up'/><alias name='net0'/></interface>"
        "<interface type='hostdev'><source/></interface>"
    )
    [card] = root(copy).findall("devices/interface")
    assert text_of(card) == (
        '<interface type="user"><mac address="52:54:00:00:00:01"/><model type="virtio"/>'
        '<link state="down"/></interface>'
    )


def test_consoles_end_in_sockets_of_vbackup() -> None:
    copy = make(
        "<serial type='pty'><source path='/dev/pts/1'/><target type='isa-serial' port='0'/></serial>"
        "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='2445'/><protocol type='raw'/>"
        "<target type='isa-serial' port='1'/></serial>"
        "<console type='pty'><target type='serial' port='0'/></console>"
        "<console type='pty'><target type='virtio' port='1'/></console>"
    )
    assert copy.consoles == ("/p/console0", "/p/console1", "/p/console2")
    found = root(copy)
    assert [one.get("path") for one in found.iterfind("devices/serial/source")] == ["/p/console0", "/p/console1"]
    [console] = found.findall("devices/console")
    assert (console.get("type"), console.find("source").get("mode")) == ("unix", "connect")  # type: ignore[union-attr]
    assert "2445" not in copy.xml


def test_console_that_is_the_only_serial_port_is_one() -> None:
    assert make("<console type='pty'><target type='serial' port='0'/></console>").consoles == ("/p/console0",)


def test_channel_of_the_agent_is_libvirts_and_others_lead_nowhere() -> None:
    copy = make(
        "<channel type='unix'><source mode='bind' path='/x/agent'/>"
        "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>"
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
        "<channel type='unix'><target type='guestfwd' address='10.0.2.1' port='4600'/></channel>"
    )
    assert copy.has_agent
    agent, other = root(copy).findall("devices/channel")
    assert text_of(agent) == ('<channel type="unix"><target type="virtio" name="org.qemu.guest_agent.0"/></channel>')
    assert other.get("type") == "null"
    assert not make().has_agent


def test_screen_needs_no_graphics_server() -> None:
    video = "<video><driver name='vhostuser'/><model type='virtio'><acceleration accel3d='yes'/></model></video>"
    copy = make(f"<graphics type='vnc' port='5901'/>{video}")
    assert copy.has_screen
    assert text_of(device(copy, "video")) == '<video><driver/><model type="virtio"/></video>'
    assert not make("<video><model type='none'/></video>").has_screen
    assert not make().has_screen


def test_devices_of_the_host_are_said() -> None:
    copy = make(
        "<tpm model='tpm-crb'><backend type='emulator'/></tpm><input type='evdev'><source dev='/dev/i'/></input>"
        "<rng model='virtio'><backend model='egd' type='tcp'/></rng><watchdog model='i6300esb' action='dump'/>"
        "<input type='tablet' bus='usb'/>",
        "<launchSecurity type='sev'/>",
    )
    assert copy.remarks[0].startswith("tpm: emulated TPM")
    assert copy.remarks[1].startswith("launchSecurity")
    assert device(copy, "rng").findtext("backend") == "/dev/urandom"
    assert device(copy, "watchdog").get("action") == "none"
    assert [one.get("type") for one in root(copy).iterfind("devices/input")] == ["tablet"]


def test_tpm_whose_state_is_there_is_in_the_copy() -> None:
    tpm = (
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes' debug='5'>"
        "<source type='dir' path='/var/lib/swtpm'/><encryption secret='6dd3e4a5-1d76-44ce-961f-f119f5aad935'/>"
        "<active_pcr_banks><sha256/></active_pcr_banks></backend><alias name='tpm0'/></tpm>"
        "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"
    )
    copy = make(tpm, place=replace(PLACE, has_tpm=True))
    [kept] = root(copy).findall("devices/tpm")
    assert text_of(kept) == (
        '<tpm model="tpm-crb"><backend type="emulator" version="2.0">'
        '<encryption secret="6dd3e4a5-1d76-44ce-961f-f119f5aad935"/></backend></tpm>'
    )
    assert [one.partition(":")[0] for one in copy.remarks] == ["tpm"]
    assert "TPM of type passthrough" in copy.remarks[0]


def test_reason_why_a_tpm_is_not_in_the_copy_is_said() -> None:
    copy = make("<tpm><backend type='emulator'/></tpm>", place=replace(PLACE, why_no_tpm="swtpm is not installed"))
    assert copy.remarks == ("tpm: swtpm is not installed",)
    assert root(copy).find("devices/tpm") is None


def test_arguments_for_qemu_are_said_and_removed() -> None:
    namespace = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
    arguments = f"<qemu:commandline {namespace}><qemu:arg value='-cpu'/></qemu:commandline>"
    copy = make(more=arguments)
    assert copy.remarks == ("qemu:commandline: arguments for QEMU are not in the copy",)
    assert "qemu:arg" not in copy.xml


def test_files_of_the_host_in_firmware_tables_are_removed() -> None:
    copy = make(
        more="<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>"
        f"<sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry><entry name='sku'>S</entry></system>"
        "</sysinfo>"
        "<os><type>hvm</type><acpi><table type='slic'>/slic</table></acpi></os>"
    )
    assert [one.get("name") for one in root(copy).iter("entry")] == ["sku"]
    assert root(copy).find("os/acpi") is None


# memory


def test_memory_is_that_of_the_domain_up_to_the_limit() -> None:
    assert root(make()).findtext("memory") == "4"
    more = (
        "<maxMemory slots='2' unit='GiB'>8</maxMemory><currentMemory unit='GiB'>4</currentMemory>"
        "<memoryBacking><hugepages/></memoryBacking><vcpu cpuset='1-2'>2</vcpu>"
        "<cpu><numa><cell id='0' cpus='0-1' memory='4' unit='GiB' memAccess='shared'/></numa></cpu>"
    )
    module = "<memory model='dimm'><source><pagesize>1</pagesize></source><target><size>1</size></target></memory>"
    whole = root(make(module, more))
    assert [whole.find(tag) is not None for tag in ("maxMemory", "cpu/numa/cell", "devices/memory")] == [True] * 3
    assert whole.find("memoryBacking") is None
    assert (whole.find("cpu/numa/cell").get("memAccess"), whole.find("vcpu").attrib) == (None, {})  # type: ignore[union-attr]
    assert whole.find("devices/memory/source") is None
    limited = root(make(module, more, max_memory_bytes=GIB))
    assert (limited.findtext("memory"), limited.find("memory").get("unit")) == (str(GIB // 1024), "KiB")  # type: ignore[union-attr]
    for tag in ("maxMemory", "currentMemory", "cpu/numa", "devices/memory"):
        assert limited.find(tag) is None


@pytest.mark.parametrize(
    "memory",
    [
        "<memory unit='GiB'>1</memory><cpu><numa><cell memory='1048576'/><cell memory='1' unit='GiB'/></numa></cpu>",
        "<memory unit='GiB'>1</memory><cpu><numa><cell memory='1048576'/></numa></cpu>",
        "<memory>1<!-- -->000000000</memory>",
        "<memory>1<x>000000000</x></memory>",
        "<cpu><numa><cell memory='3' unit='GiB'/></numa></cpu>",
    ],
)
def test_memory_is_also_that_of_cells_and_modules(memory: str) -> None:
    module = "<memory model='dimm'><target><size unit='MiB'>1</size></target></memory>"
    text = f"<domain><name>web</name><uuid>{UUID}</uuid>{memory}<devices>{DISK}{module}</devices></domain>"
    limited = root(of(text, max_memory_bytes=GIB))
    found = limited.find("memory")
    assert found is not None
    assert ("".join(map(str, found.itertext())), dict(found.attrib)) == (str(GIB // 1024), {"unit": "KiB"})
    assert [limited.find(tag) for tag in ("cpu/numa", "devices/memory")] == [None, None]


@pytest.mark.parametrize("memory", ["<memory>many</memory>", "<memory unit='PiB'>1</memory>"])
def test_memory_that_is_not_valid_is_refused(memory: str) -> None:
    text = f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid>{memory}<devices>{DISK}</devices></domain>"
    with pytest.raises(MalformedError, match="<memory>"):
        of(text)


# what it boots


def test_direct_boot_is_of_the_copies() -> None:
    more = "<os><type>hvm</type><kernel> /boot/vmlinuz </kernel><initrd>/boot/i</initrd><cmdline>quiet</cmdline></os>"
    text = f"<domain><os><kernel> /boot/vmlinuz </kernel><initrd>/boot/i</initrd><dtb/></os><name/>{UUID}</domain>"
    assert boot_copy.boot_files(text) == {"kernel": "/boot/vmlinuz", "initrd": "/boot/i"}
    copy = make(more=more, place=Place("/p/nbd", "/p", boot_files={"kernel": "/p/kernel"}))
    assert copy.is_direct_boot
    assert (root(copy).findtext("os/kernel"), root(copy).find("os/initrd")) == ("/p/kernel", None)
    assert root(copy).findtext("os/cmdline") == "quiet"
    assert not make().is_direct_boot


def test_variables_of_the_firmware_are_a_copy() -> None:
    more = "<os firmware='efi'><type>hvm</type><nvram template='/t'>/var/web_VARS.fd</nvram></os>"
    copy = make(more=more)
    assert copy.has_nvram
    nvram = root(copy).find("os/nvram")
    assert nvram is not None
    assert (nvram.text, nvram.get("format")) == ("/p/nvram", "qcow2")


@pytest.mark.parametrize(
    ("template", "is_kept"), [("/usr/share/OVMF/V.fd", True), ("/etc/shadow", False), ("/usr/share/../../etc/x", False)]
)
def test_template_of_variables_is_a_file_of_a_package(template: str, is_kept: bool) -> None:
    """libvirtd copies it as root to where the guest can read it."""
    copy = make(more=f"<os><type>hvm</type><loader>/f</loader><nvram template='{template}'>/v</nvram></os>")
    nvram = root(copy).find("os/nvram")
    assert nvram is not None
    assert nvram.get("template") == (template if is_kept else None)


def test_firmware_is_the_one_that_libvirt_reads() -> None:
    assert make().firmware is None
    more = "<os><loader type='rom'>/usr/share/a<!-- -->/b<x>/../../../etc/shadow</x></loader><loader>/c</loader></os>"
    copy = make(more=more)
    assert copy.firmware == "/usr/share/a/b"
    assert [text_of(one) for one in root(copy).iterfind("os/loader")] == ['<loader type="rom">/usr/share/a/b</loader>']


@pytest.mark.parametrize("tag", ["devices", "os", "cpu"])
def test_second_of_what_is_reworked_is_refused(tag: str) -> None:
    with pytest.raises(MalformedError, match=f"second <{tag}>"):
        make(more=f"<os/><cpu/><{tag}/><{tag}/>")


def test_path_that_xml_cannot_have_is_refused() -> None:
    with pytest.raises(UsageError, match="another directory"):
        make(place=Place("/p\x01/nbd", "/p"))
