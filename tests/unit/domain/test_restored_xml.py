"""A restored domain has exactly the disks of the backup, and writes to nothing of the original's."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree

from tests.unit.builders import FIXTURES, UUID, fixture_xml
from vbackup.domain import domain_xml, restored_xml
from vbackup.domain.restored_xml import RestoredXml
from vbackup.errors import MalformedError, UsageError
from vbackup.model import ImageFormat

#: The disks of the running domain "differing".
RUNNING = ("vda", "vdb", "vdd", "sdb")


def inactive(name: str) -> str:
    return (FIXTURES / name / "inactive.xml").read_text()


def rework(definition: str, live: str | None = None, *devs: str, **more: Any) -> RestoredXml:
    values: dict[str, Any] = {"output": "/out", "keep_others": False, **more}
    return restored_xml.rework(definition, live, dict.fromkeys(devs or ("vda",)), **values)


def disks(text: str) -> dict[str, tuple[str, str | None]]:
    """Device and path of each disk, also after the images' paths were written."""
    found = {}
    for element in etree.fromstring(text).iterfind("devices/disk"):
        target, source = element.find("target"), element.find("source")
        assert target is not None
        found[target.get("dev", "")] = (element.get("device", "disk"), None if source is None else source.get("file"))
    return found


def restored(reworked: RestoredXml, *devs: str) -> dict[str, tuple[str, str | None]]:
    images = {dev: (f"/out/{dev}.qcow2", ImageFormat.QCOW2) for dev in devs}
    return disks(domain_xml.with_disks(reworked.text, images))


def domain(devices: str, more: str = "") -> str:
    return f"<domain><name>web</name><uuid>{UUID}</uuid>{more}<devices>{devices}</devices></domain>"


def disk(dev: str, path: str, inside: str = "", *, device: str = "disk") -> str:
    return (
        f"<disk type='file' device='{device}'><source file='{path}'/><target dev='{dev}' bus='virtio'/>{inside}</disk>"
    )


# the disks of the backup


def test_restored_domain_has_exactly_the_disks_of_the_running_one() -> None:
    """In the definition vdb is another image, sdb is a cdrom, and vde is one more disk."""
    found = rework(inactive("differing"), fixture_xml("differing"), *RUNNING)
    assert restored(found, *RUNNING) == {dev: ("disk", f"/out/{dev}.qcow2") for dev in RUNNING}
    assert [(left.dev, left.reason) for left in found.left_out] == [
        ("vde", "disk /capture/defined.qcow2: it is not in the backup"),
        ("vdb", "disk /capture/other-vdb.qcow2: only the definition had it, and another disk is vdb"),
        ("sdb", "cdrom /capture/cd.iso: only the definition had it, and another disk is sdb"),
    ]
    assert found.shared == ()


def test_disk_of_the_running_domain_only_keeps_its_place_and_loses_what_was_of_the_run() -> None:
    root = etree.fromstring(rework(inactive("differing"), fixture_xml("differing"), *RUNNING).text)
    (element,) = root.xpath("devices/disk[target/@dev='sdb']")
    assert [child.tag for child in element] == ["driver", "source", "target", "address"]
    assert element.find("target").get("bus") == "scsi"
    assert element.find("address").get("unit") == "1"


def test_disk_that_both_have_stays_as_it_is_defined() -> None:
    root = etree.fromstring(rework(inactive("differing"), fixture_xml("differing"), *RUNNING).text)
    (element,) = root.xpath("devices/disk[target/@dev='vdd']")
    (before,) = etree.fromstring(inactive("differing")).xpath("devices/disk[target/@dev='vdd']")
    assert etree.tostring(element, method="c14n") == etree.tostring(before, method="c14n")


def test_disks_that_only_the_definition_has_are_found() -> None:
    found = restored_xml.only_defined(inactive("differing"), fixture_xml("differing"))
    assert [(left.dev, left.reason) for left in found] == [
        ("vdb", "only the definition has /capture/other-vdb.qcow2: the running domain has /capture/vdb.qcow2 as vdb"),
        ("vde", "only the definition has /capture/defined.qcow2: the running domain has no such disk"),
    ]
    assert restored_xml.only_defined(inactive("efi"), fixture_xml("efi")) == []


@pytest.mark.parametrize(
    ("live", "defined", "kept"),
    [
        (("<address type='pci' slot='5'/>"), "<interface><address type='pci' slot='6'/></interface>", True),
        (("<address type='pci' slot='5'/>"), "<interface><address slot='5' type='pci'/></interface>", False),
        ("<boot order='1'/>", "<interface><boot order='2'/></interface>", True),
        ("<boot order='1'/>", "<interface><boot order='1'/></interface>", False),
        ("<alias name='ua-mine'/>", "", True),
        ("<alias name='virtio-disk1'/>", "", False),
        ("<driver iothread='2'/>", "", False),
        ("<backingStore/>", "", False),
    ],
)
def test_what_the_definition_gave_to_another_device_is_not_taken(live: str, defined: str, kept: bool) -> None:
    """libvirt refuses a definition that has an address, a boot order or an alias twice, or an unknown iothread."""
    found = rework(
        domain(disk("vda", "/a") + defined), domain(disk("vda", "/a") + disk("vdb", "/b", live)), "vda", "vdb"
    )
    name = etree.fromstring(live).tag
    (element,) = etree.fromstring(found.text).xpath("devices/disk[target/@dev='vdb']")
    assert bool(element.xpath(f"{name}[@*]")) is kept


def test_iothread_that_the_definition_has_stays() -> None:
    live = domain(disk("vdb", "/b", "<driver iothread='2'/>"))
    for threads in ("<iothreads>2</iothreads>", "<iothreadids><iothread id='2'/></iothreadids>"):
        assert 'iothread="2"' in rework(domain("", threads), live, "vdb").text


def test_scsi_controller_of_the_running_domain_comes_along() -> None:
    """libvirt would add one of another model."""
    address = "<address type='drive' controller='1' bus='0' target='0' unit='0'/>"
    sdb = disk("sdb", "/b", address).replace("virtio", "scsi")
    controller = "<controller type='scsi' index='1' model='virtio-scsi'><alias name='scsi1'/></controller>"
    found = rework(domain(""), domain(sdb + controller), "sdb")
    assert '<controller type="scsi" index="1" model="virtio-scsi"/>' in found.text
    assert rework(domain(controller), domain(sdb + controller), "sdb").text.count("<controller") == 1


def test_hot_plugged_disk_of_an_older_backup_is_there_too() -> None:
    """It has no XML of the running domain."""
    found = rework(domain(disk("vda", "/a") + disk("sdb", "/cd.iso", device="cdrom")), None, "vda", "vdb", "sdb")
    assert restored(found, "vda", "vdb", "sdb") == {dev: ("disk", f"/out/{dev}.qcow2") for dev in ("vda", "vdb", "sdb")}
    assert [left.dev for left in found.left_out] == ["sdb"]


def test_other_image_in_the_definition_of_an_older_backup_is_told() -> None:
    found = restored_xml.rework(domain(disk("vda", "/new")), None, {"vda": "/old"}, output="/out", keep_others=False)
    assert [left.reason for left in found.left_out] == ["the definition's /new is not in the backup"]


def test_cdrom_never_gets_the_image_of_a_disk() -> None:
    text = domain(disk("sda", "/cd.iso", device="cdrom"))
    assert disks(domain_xml.with_disks(text, {"sda": ("/out/sda.raw", ImageFormat.RAW)})) == {
        "sda": ("cdrom", "/cd.iso")
    }


# what is not in the backup


def test_nothing_of_a_real_domain_that_is_written_to_is_left() -> None:
    found = rework(fixture_xml("state"))
    text = domain_xml.with_disks(found.text, {"vda": ("/out/vda.raw", ImageFormat.RAW)}, nvram_path="/out/nvram")
    still = {line.strip() for line in text.splitlines() if "/capture" in line or "/dev/" in line}
    assert still == {
        '<loader readonly="yes" type="pflash">/capture/CODE.fd</loader>',
        '<source file="/capture/read.raw"/>',
        '<source file="/capture/base.raw"/>',
        '<source file="/capture/cd.iso"/>',
        '<source dir="/capture/docs"/>',
    }
    assert {left.dev for left in found.shared} == {"vdc", "vdd", "filesystem docs"}
    gone = ("<tpm", "<shmem", 'type="pci" managed', 'type="usb" managed', "<lease", "qemu:arg", "nvdimm", "virtio-pmem")
    assert [one for one in gone if one in text] == []
    assert 'type="mdev"' in text, "a part of an adapter stores nothing"


def test_all_that_was_removed_is_told() -> None:
    found = rework(fixture_xml("state"))
    assert [left.kind for left in found.left_out] == [
        *["disk"] * 4, "tpm", "memory", "memory", "filesystem", "shmem", "hostdev", "hostdev", "hostdev",
        "qemu:commandline", "lease", "serial", "parallel", "serial",
    ]  # fmt: skip
    assert {left.dev for left in found.left_out if left.kind == "disk"} == {"vdb", "sda", "vde", "fda"}


def test_output_goes_to_the_directory_of_the_restore() -> None:
    root = etree.fromstring(rework(fixture_xml("state")).text)
    serial = [element.get("path") for element in root.iterfind("devices/serial/source")]
    console = [element.get("path") for element in root.iterfind("devices/console/source")]
    assert serial == console == ["/out/serial0.log"], "libvirt takes the console for the same port"
    assert len({element.get("file") for element in root.iterfind("devices/*/log")}) == 1


def test_with_disks_named_by_the_user_everything_else_stays_and_is_told() -> None:
    found = rework(fixture_xml("state"), keep_others=True)
    assert etree.tostring(etree.fromstring(found.text), method="c14n") == etree.tostring(
        etree.fromstring(fixture_xml("state")), method="c14n"
    )
    assert found.left_out == ()
    assert {"vdb", "vdc", "vdd", "vde", "sda", "fda", "tpm", "filesystem share"} <= {left.dev for left in found.shared}
    assert {"lease", "serial", "parallel"} <= {left.kind for left in found.shared}
    assert found.new_files == ()


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ("<os firmware='efi'/>", "libvirt makes new ones when the domain starts"),
        ("<os><nvram template='/t'>/v</nvram></os>", "libvirt makes new ones when the domain starts"),
        (
            "<os><loader>/c</loader><nvram type='block'><source dev='/dev/x'/></nvram></os>",
            "if it knows a template for /c; if not, copy one that fits that firmware to /out/nvram",
        ),
        ("<os><nvram>/v</nvram></os>", "if it knows a template for its firmware; if not, copy one"),
    ],
)
def test_new_variables_are_promised_only_where_libvirt_has_a_template(system: str, reason: str) -> None:
    found = restored_xml.nvram_left_out(rework(domain("", system)), is_in_backup=False, path="/out/nvram")
    assert found is not None
    assert (found.dev, found.kind, found.reason.endswith(reason) or reason in found.reason) == ("nvram", "nvram", True)


@pytest.mark.parametrize(
    ("nvram", "was"),
    [
        ("", "UEFI variables in the place that libvirt chooses"),
        ("<nvram>/v</nvram>", "/v"),
        ("<nvram type='block'><source dev='/dev/x'/></nvram>", "/dev/x"),
    ],
)
def test_variables_of_the_backup_are_told_where_only_disks_were_asked_for(nvram: str, was: str) -> None:
    xml = domain("", f"<os firmware='efi'>{nvram}</os>")
    found = restored_xml.nvram_left_out(rework(xml, keep_others=True), is_in_backup=True, path="/out/nvram")
    assert found is not None
    assert found.reason == f"{was}: the domain gets those of the backup, /out/nvram"
    assert restored_xml.nvram_left_out(rework(xml), is_in_backup=True, path="/out/nvram") is None


def test_kernel_that_the_host_boots_the_guest_with_is_told_and_stays() -> None:
    found = rework(domain("", "<os><kernel>/vmlinuz</kernel></os>"))
    assert [(left.dev, left.kind) for left in found.shared] == [("kernel", "kernel")]
    assert "<kernel>/vmlinuz</kernel>" in found.text


IOTHREADS = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' queues='4'>
        <iothreads>
          <iothread id='1'>
            <queue id='0'/>
            <queue id='2'/>
          </iothread>
          <iothread id='2'>
            <queue id='1'/>
            <queue id='3'/>
          </iothread>
        </iothreads>
      </driver>
      <source file='/images/vda.qcow2' index='1'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>"""


@pytest.mark.parametrize(
    ("threads", "is_kept"),
    [
        ("<iothreads>2</iothreads>", True),
        ("<iothreadids><iothread id='1'/><iothread id='2'/></iothreadids>", True),
        ("<iothreads>1</iothreads>", False),
        ("", False),
    ],
)
def test_queues_are_served_by_iothreads_that_the_definition_has(threads: str, is_kept: bool) -> None:
    """iothread-vq-mapping (libvirt 10.0): a thread that is missing makes libvirt refuse the definition."""
    live = domain(IOTHREADS, "<iothreads>2</iothreads>")
    text = rework(domain("", threads), live, "vda").text
    assert ('<iothread id="2">' in text.partition("<devices>")[2]) == is_kept
    assert 'queues="4"' in text
    assert restored(rework(domain("", threads), live, "vda"), "vda") == {"vda": ("disk", "/out/vda.qcow2")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<os><varstore template='/t'/></os>", '<varstore template="/t" path="/out/varstore"/>'),
        ("<os><varstore path='/v' template='/t'/></os>", '<varstore path="/out/varstore" template="/t"/>'),
        ("<os><loader type='pflash'>/c</loader></os>", "<os/>"),
        (
            "<devices><pstore backend='acpi-erst'><path>/p</path></pstore></devices>",
            '<pstore backend="acpi-erst"><path>/out/pstore</path></pstore>',
        ),
        ("<devices><audio type='file' path='/a.wav'/></devices>", '<audio type="file" path="/out/audio0.log"/>'),
        (
            "<devices><interface><backend type='passt' logFile='/p'/></interface></devices>",
            '<backend type="passt" logFile="/out/backend0.log"/>',
        ),
        (
            "<devices><channel type='file'><source path='/c'/></channel></devices>",
            '<channel type="file"><source path="/out/channel0.log"/></channel>',
        ),
    ],
)
def test_file_that_qemu_writes_is_a_new_one(before: str, after: str) -> None:
    found = rework(f"<domain>{before}</domain>", None, keep_others=False)
    assert after in found.text
    assert len([left for left in found.left_out if left.kind != "disk"]) == 1


@pytest.mark.parametrize("output", ["/a\x01b", "/a\udcff"])
def test_output_that_xml_cannot_have_is_told(output: str) -> None:
    with pytest.raises(UsageError):
        rework(domain(""), None, output=output)


@pytest.mark.parametrize(("definition", "live"), [("<domain", None), (domain(""), "<domain")])
def test_text_that_is_not_a_domain_is_malformed(definition: str, live: str | None) -> None:
    with pytest.raises(MalformedError):
        rework(definition, live)


def test_volume_that_is_none_any_more_is_told() -> None:
    volume = "<disk type='volume' device='disk'><source pool='default' volume='web'/><target dev='vda'/></disk>"
    found = rework(domain(volume + disk("vdb", "/vdb")), None, "vda", "vdb")
    assert [(left.dev, left.reason) for left in found.left_out] == [
        ("vda", "volume web of pool default: domain.xml has the path of the restored disk")
    ]
    assert restored(found, "vda", "vdb")["vda"] == ("disk", "/out/vda.qcow2")
