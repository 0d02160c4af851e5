"""The domain XML is read as libvirt writes it, and refused if libvirt would not write it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.unit.builders import FIXTURES, UUID, fixture_xml
from vbackup.domain import domain_xml
from vbackup.errors import MalformedError, VbackupError
from vbackup.model import BlockDriver, Disk, ImageFormat, SecretRef, SourceType

DISK = "<disk type='file'><source file='/images/vda.qcow2'/><target dev='vda'/><alias name='virtio-disk0'/></disk>"
AGENT = "<channel><target type='virtio' name='org.qemu.guest_agent.0' {}/></channel>"


def xml(devices: str = DISK, *, more: str = "", uuid: str = UUID, name: str = "web") -> str:
    """A domain XML with the parts that vbackup reads."""
    return f"<domain><name>{escape(name)}</name><uuid>{uuid}</uuid>{more}<devices>{devices}</devices></domain>"


def disk_xml(inside: str = "", *, attributes: str = "type='file' device='disk'", dev: str = "vda") -> str:
    return (
        f"<disk {attributes}><source file='/images/x'/><target dev={quoteattr(dev)}/>"
        f"{inside}<alias name='virtio-disk0'/></disk>"
    )


# what libvirt writes


def test_rich_domain_has_the_disks_that_can_be_backed_up() -> None:
    domain = domain_xml.parse(fixture_xml("rich"))
    assert domain.name == "käse & brot"
    assert domain.uuid == UUID
    expected = [
        Disk("vda", "virtio-disk0", "/capture/zwei Wörter & <mehr>/dïsk 'a'.qcow2", BlockDriver.QCOW2),
        Disk("vdb", "ua-my_own-alias", "/capture/disk.qcow2", BlockDriver.QCOW2),
        Disk("vdc", "virtio-disk2", "/capture/other/disk.qcow2", BlockDriver.QCOW2),
        Disk("vdd", "virtio-disk3", "/capture/plain.raw", BlockDriver.RAW),
        Disk("vdi", "virtio-disk8", "/capture/both.qcow2", BlockDriver.QCOW2),
        Disk("vdj", "virtio-disk9", None, BlockDriver.RAW),
        Disk("sda", "scsi0-0-0-0", "/capture/scsi.qcow2", BlockDriver.QCOW2),
        Disk("sdb", "sata0-0-1", "/capture/sata.raw", BlockDriver.RAW),
        Disk("hda", "ide0-0-0", "/capture/ide.qcow2", BlockDriver.QCOW2),
    ]
    found = [replace(disk, images=(), chain_ends=False) for disk in domain.disks if disk.dev != "vdh"]
    assert found == expected


def test_live_xml_has_the_whole_backing_chain() -> None:
    disks = {disk.dev: disk for disk in domain_xml.parse(fixture_xml("rich")).disks}
    assert [image.path for image in disks["vda"].images] == [disks["vda"].path, "/capture/base.qcow2"]
    assert disks["vda"].chain_ends
    assert [image.path for image in disks["vdb"].images] == [disks["vdb"].path]


def test_domain_that_is_off_is_read_as_it_would_start() -> None:
    domain = domain_xml.parse(fixture_xml("off"))
    disks = {disk.dev: disk for disk in domain.disks}
    assert {dev: disk.alias for dev, disk in disks.items()} == {
        **{dev: dev for dev in ("vda", "vdc", "vdd", "vde", "vdf", "vdg", "vdh")},
        "vdb": "ua-mine",
    }
    assert [left.dev for left in domain.left_out] == ["vdi", "hda"]
    assert not domain.agent_connected
    # What the user did not define is missing: the image headers count.
    assert (len(disks["vda"].images), disks["vda"].chain_ends) == (1, False)
    assert [(image.path, str(image.format)) for image in disks["vdb"].images] == [
        ("/capture/overlay.qcow2", "qcow2"),
        ("/capture/base.qcow2", "qcow2"),
    ]
    assert disks["vdb"].chain_ends


def test_secrets_of_encrypted_disks_are_named() -> None:
    disks = {disk.dev: disk for disk in domain_xml.parse(fixture_xml("off")).disks}
    assert disks["vdd"].images[0].secret == SecretRef(uuid="5ec4e700-0000-4000-8000-000000000001")
    assert disks["vde"].images[0].secret == SecretRef(usage="/capture/luks.raw")
    assert [disks[dev].encrypted for dev in ("vda", "vdd", "vde")] == [False, True, True]


def test_volume_has_no_path_but_a_pool() -> None:
    (vdf,) = (disk for disk in domain_xml.parse(fixture_xml("off")).disks if disk.dev == "vdf")
    assert (vdf.path, vdf.images[0].pool, vdf.images[0].volume) == (None, "images", "v.qcow2")


def test_network_disk_has_no_path() -> None:
    (vdg,) = (disk for disk in domain_xml.parse(fixture_xml("off")).disks if disk.dev == "vdg")
    assert (vdg.images[0].source_type, vdg.path) == (SourceType("network"), None)


def test_slice_of_an_image_cannot_be_opened() -> None:
    (vdh,) = (disk for disk in domain_xml.parse(fixture_xml("off")).disks if disk.dev == "vdh")
    assert vdh.images[0].oddity == "it is a slice of a larger image"


@pytest.mark.parametrize(
    ("encryption", "oddity"),
    [
        ("<encryption format='luks'><secret type='passphrase' usage='x'/></encryption>", None),
        ("<encryption format='qcow'><secret type='passphrase' usage='x'/></encryption>", "encrypted with qcow"),
        ("<encryption format='luks' engine='librbd'><secret usage='x'/></encryption>", "encrypted with librbd"),
        ("<encryption format='luks'/>", "does not name exactly one secret"),
        (
            "<encryption format='luks'><secret usage='x'/><secret usage='y'/></encryption>",
            "does not name exactly one secret",
        ),
    ],
)
def test_encryption_that_is_not_plain_luks_is_reported(encryption: str, oddity: str | None) -> None:
    (vda,) = domain_xml.parse(xml(disk_xml(encryption))).disks
    assert vda.encrypted
    assert (vda.images[0].oddity is None) == (oddity is None)
    assert (oddity or "") in (vda.images[0].oddity or "")


def test_block_device_is_a_disk() -> None:
    vdh = next(disk for disk in domain_xml.parse(fixture_xml("rich")).disks if disk.dev == "vdh")
    assert (vdh.images[0].source_type, vdh.format) == (SourceType("block"), BlockDriver.RAW)
    assert vdh.path is not None
    assert vdh.path.startswith("/dev/")


def test_rich_domain_leaves_out_what_no_backup_can_have() -> None:
    left_out = {left.dev: left.reason for left in domain_xml.parse(fixture_xml("rich")).left_out}
    assert left_out == {
        "vde": "read-only",
        "vdf": "shareable: other domains write to it too",
        "vdg": "transient: its changes are discarded",
        "hdb": "cdrom",
        "hdc": "cdrom",
        "fda": "floppy",
    }


def test_many_disks_keep_their_order() -> None:
    devs = [disk.dev for disk in domain_xml.parse(fixture_xml("many")).disks]
    assert len(devs) == 28
    assert devs[:2] + devs[-3:] == ["vda", "vdb", "vdz", "vdaa", "vdab"]


def test_after_an_external_snapshot_the_overlay_is_the_disk() -> None:
    domain = domain_xml.parse(fixture_xml("snapshot"))
    assert [(disk.dev, disk.path, disk.format.name) for disk in domain.disks] == [
        ("vda", "/capture/vda.one", "qcow2"),
        ("vdb", "/capture/vdb.qcow2", "qcow2"),
        ("vdc", "/capture/vdc.one", "qcow2"),
    ]


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (disk_xml(attributes="type='file' device='cdrom'"), "cdrom"),
        (disk_xml(attributes="type='file' device='floppy'"), "floppy"),
        (disk_xml(attributes="type='block' device='lun'"), "LUN passed through to the guest"),
        (disk_xml("<readonly/>"), "read-only"),
        (disk_xml("<shareable/>"), "shareable: other domains write to it too"),
        (disk_xml("<transient/>"), "transient: its changes are discarded"),
        (disk_xml("<transient shareBacking='yes'/>"), "transient: its changes are discarded"),
        (disk_xml(attributes="type='vhostuser'"), "vhostuser: its data does not pass through QEMU"),
        (disk_xml(attributes="type='vhostvdpa'"), "vhostvdpa: its data does not pass through QEMU"),
        (disk_xml(attributes="type='dir'"), "dir: its data does not pass through QEMU"),
    ],
    ids=lambda value: value if not value.startswith("<") else "",
)
def test_disk_is_left_out_with_its_reason(disk: str, reason: str) -> None:
    domain = domain_xml.parse(xml(disk))
    assert domain.disks == ()
    assert [(left.dev, left.reason) for left in domain.left_out] == [("vda", reason)]


@pytest.mark.parametrize("kind", ["file", "block", "network", "volume", "nvme", "one-of-a-newer-libvirt"])
def test_source_type_is_read(kind: str) -> None:
    (disk,) = domain_xml.parse(xml(disk_xml(attributes=f"type='{kind}'"))).disks
    assert disk.images[0].source_type == SourceType(kind)


def test_volume_of_a_pool_has_no_path() -> None:
    disk = "<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/><alias name='a'/></disk>"
    found = domain_xml.parse(xml(disk)).disks[0]
    assert (found.images[0].source_type, found.path) == (SourceType("volume"), None)


def test_device_is_a_disk_unless_said_otherwise() -> None:
    assert len(domain_xml.parse(xml(disk_xml(attributes="type='file'"))).disks) == 1


def test_format_is_raw_unless_said_otherwise() -> None:
    assert domain_xml.parse(xml()).disks[0].format == BlockDriver.RAW


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "one-of-a-newer-libvirt"])
def test_format_is_read(image_format: str) -> None:
    (disk,) = domain_xml.parse(xml(disk_xml(f"<driver name='qemu' type='{image_format}'/>"))).disks
    assert disk.format == disk.images[0].format == BlockDriver(image_format)


@pytest.mark.parametrize(
    "disk",
    [
        disk_xml("<encryption format='luks'/>"),
        "<disk><source file='/x'><encryption format='luks'/></source><target dev='vda'/><alias name='a'/></disk>",
    ],
)
def test_encryption_is_read(disk: str) -> None:
    assert domain_xml.parse(xml(disk)).disks[0].encrypted
    assert not domain_xml.parse(xml()).disks[0].encrypted


@pytest.mark.parametrize(
    ("channel", "connected"),
    [
        ("", False),
        (AGENT.format("state='connected'"), True),
        (AGENT.format("state='disconnected'"), False),
        (AGENT.format(""), False),
        ("<channel><target name='com.redhat.spice.0' state='connected'/></channel>", False),
    ],
)
def test_agent_is_connected_when_libvirt_says_so(channel: str, connected: bool) -> None:
    assert domain_xml.parse(xml(DISK + channel)).agent_connected is connected


@pytest.mark.parametrize(
    ("nvram", "path"),
    [
        ("", None),
        ("<nvram/>", None),
        ("<nvram>/var/nvram/web_VARS.fd</nvram>", "/var/nvram/web_VARS.fd"),
        ("<nvram template='/usr/share/x'>\n  /var/nvram/web_VARS.fd\n</nvram>", "/var/nvram/web_VARS.fd"),
        ("<nvram type='file'><source file='/var/nvram/web_VARS.fd'/></nvram>", "/var/nvram/web_VARS.fd"),
        ("<nvram type='network'><source protocol='nbd'/></nvram>", None),
    ],
)
def test_nvram_is_found_where_libvirt_names_it(nvram: str, path: str | None) -> None:
    assert domain_xml.parse(xml(more=f"<os>{nvram}</os>")).nvram_path == path


def test_uuid_is_in_lower_case() -> None:
    assert domain_xml.parse(xml(uuid=UUID.upper())).uuid == UUID


@pytest.mark.parametrize("name", ["käse & brot", "<b>", "-r", "../up", "a\tb", "日本"])
def test_any_name_is_read_as_it_is(name: str) -> None:
    assert domain_xml.parse(xml(name=name)).name == name


# what libvirt never writes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("not XML", "cannot be read"),
        ("<domain>", "cannot be read"),
        ("<domain/>", "no <uuid>"),
        ("<domainsnapshot/>", "root element of the domain XML is <domainsnapshot>"),
        ("<domain xmlns='http://x'/>", "root element"),
        (xml(uuid=""), "no <uuid>"),
        (xml(uuid="none"), "which is not valid"),
        (xml(uuid=UUID + "/../x"), "which is not valid"),
        (xml(name=""), "no <name>"),
        (xml("<disk><alias name='a'/></disk>"), "a disk with the target ''"),
        (xml(DISK + DISK), "two disks named vda"),
        (xml(DISK + disk_xml("<readonly/>")), "two disks named vda"),
        ("<domain>\0</domain>", "cannot be read"),
        ("<domain>\ud800</domain>", "cannot be read"),
        ("<?xml version='1.0' encoding='no-such-encoding'?><domain/>", "."),
    ],
    ids=lambda value: value[:40],
)
def test_text_that_is_not_a_domain_is_malformed(text: str, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        domain_xml.parse(text)


@pytest.mark.parametrize(
    "dev", ["", "../x", "..", "/etc/passwd", "vda/../x", "vda\n", "VDA", "a" * 11, "-o", "vda.qcow2"]
)
def test_target_that_could_leave_the_directory_is_refused(dev: str) -> None:
    with pytest.raises(MalformedError, match="target"):
        domain_xml.parse(xml(disk_xml(dev=dev)))
    with pytest.raises(MalformedError, match="target"):
        domain_xml.with_disks(xml(disk_xml(dev=dev)), {})


def test_disk_of_a_domain_that_is_off_goes_by_its_dev() -> None:
    (vda,) = domain_xml.parse(xml("<disk type='file'><source file='/x'/><target dev='vda'/></disk>")).disks
    assert vda.alias == "vda"


ENTITIES = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 12))
BILLION_LAUGHS = f"<!DOCTYPE domain [<!ENTITY l0 'ha'>{ENTITIES}]>" + xml(name="web").replace("web", "&l11;")


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE domain>" + xml(),
        "<!DOCTYPE domain [<!ENTITY a 'web'>]>" + xml(),
        "<!DOCTYPE domain [<!ENTITY a 'web'>]>" + xml().replace("web", "&a;"),
        "<!DOCTYPE domain SYSTEM 'http://127.0.0.1:1/x.dtd'>" + xml(),
        BILLION_LAUGHS,
        BILLION_LAUGHS.replace("<name>&l11;</name>", "<name x='&l11;'/>"),
    ],
    ids=["empty", "unused", "used", "network", "billion laughs", "billion laughs in an attribute"],
)
def test_document_type_is_refused_at_once(text: str) -> None:
    begun = time.monotonic()
    for read in (domain_xml.parse, lambda one: domain_xml.with_disks(one, {})):
        with pytest.raises(MalformedError):
            read(text)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("declaration", ["<!ENTITY x SYSTEM '{}'>", "<!ENTITY % x SYSTEM '{}'> %x;"])
def test_file_of_the_host_does_not_get_in(tmp_path: Path, declaration: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("<!ENTITY y 'the secret'>")
    os.utime(secret, (0, time.time()))
    text = f"<!DOCTYPE domain [{declaration.format(secret)}]>" + xml(name="web").replace("web", "&x;")
    with pytest.raises(MalformedError) as caught:
        domain_xml.parse(text)
    assert "the secret" not in str(caught.value)
    assert secret.stat().st_atime == 0, "the file was read"


def test_included_file_does_not_get_in(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    include = f"<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='{secret}' parse='text'/>"
    with pytest.raises(MalformedError):
        domain_xml.parse(xml().replace("web", include))


@given(st.text())
def test_any_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        domain_xml.parse(text)


@given(st.data())
def test_any_damage_to_a_real_domain_is_malformed(data: st.DataObject) -> None:
    text = fixture_xml("snapshot")
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 200)))
    damaged = text[:begin] + data.draw(st.text(max_size=20)) + text[end:]
    for read in (domain_xml.parse, lambda one: domain_xml.with_disks(one, {"vda": ("/r/vda.raw", ImageFormat.RAW)})):
        try:
            read(damaged)
        except VbackupError as err:
            assert isinstance(err, MalformedError)  # noqa: PT017


# restored disks


def test_restored_disks_are_where_they_were_written() -> None:
    images = {
        "vda": ("/restored/with spaces & <ö>/vda.qcow2", ImageFormat.QCOW2),
        "vdd": ("/restored/vdd.raw", ImageFormat.RAW),
        "vdh": ("/restored/vdh.qcow2", ImageFormat.QCOW2),
        "vdj": ("/restored/vdj.raw", ImageFormat.RAW),
    }
    before = {disk.dev: disk for disk in domain_xml.parse(fixture_xml("rich")).disks}
    after = {disk.dev: disk for disk in domain_xml.parse(domain_xml.with_disks(fixture_xml("rich"), images)).disks}
    assert {dev: (after[dev].images[0].source_type, after[dev].path, after[dev].format.name) for dev in images} == {
        dev: (SourceType.FILE, path, image_format.value) for dev, (path, image_format) in images.items()
    }
    untouched = before.keys() - images.keys()
    assert {dev: after[dev] for dev in untouched} == {dev: before[dev] for dev in untouched}


@pytest.mark.parametrize("name", [path.parent.name for path in FIXTURES.glob("*/domain.xml")])
def test_nothing_but_the_disks_changes(name: str) -> None:
    images = {disk.dev: (f"/r/{disk.dev}.raw", ImageFormat.RAW) for disk in domain_xml.parse(fixture_xml(name)).disks}
    before, after = (
        etree.fromstring(fixture_xml(name)),
        etree.fromstring(domain_xml.with_disks(fixture_xml(name), images)),
    )
    for root in (before, after):
        for element in root.findall("devices/disk"):
            target = element.find("target")
            if target is not None and target.get("dev") in images:
                parent = element.getparent()
                assert parent is not None
                parent.remove(element)
    assert etree.tostring(before, method="c14n") == etree.tostring(after, method="c14n")


def restored(disk: str, *, image_format: ImageFormat = ImageFormat.QCOW2) -> etree._Element:
    root = etree.fromstring(domain_xml.with_disks(xml(disk), {"vda": ("/r/vda.img", image_format)}))
    element = root.find("devices/disk")
    assert element is not None
    return element


@pytest.mark.parametrize("image_format", ImageFormat)
def test_what_only_qcow2_has_does_not_stay_with_raw(image_format: ImageFormat) -> None:
    cache = "<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>"
    driver = f"<driver name='qemu' type='qcow2' discard='unmap' discard_no_unref='on'>{cache}</driver>"
    old = f"<disk type='file' device='disk'>{driver}<source file='/old'/><target dev='vda' bus='virtio'/></disk>"
    after = restored(old, image_format=image_format).find("driver")
    assert after is not None
    assert after.get("discard") == "unmap"
    is_raw = image_format is ImageFormat.RAW
    assert (after.get("discard_no_unref"), len(after)) == ((None, 0) if is_raw else ("on", 1))


def test_what_described_the_old_image_goes() -> None:
    old = (
        "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>"
        "<source protocol='rbd' name='p/i' startupPolicy='optional'><host name='h'/><auth username='u'/>"
        "<encryption format='luks'/><slices/></source><auth username='u'/>"
        "<backingStore type='file'><source file='/base'/></backingStore><mirror/>"
        "<target dev='vda' bus='virtio'/><encryption format='luks'/><alias name='virtio-disk0'/></disk>"
    )
    element = restored(old)
    assert [child.tag for child in element] == ["driver", "source", "target", "alias"]
    assert element.get("type") == "file"
    source, driver = element.find("source"), element.find("driver")
    assert source is not None
    assert driver is not None
    assert dict(source.attrib) == {"file": "/r/vda.img"}
    assert len(source) == 0
    assert driver.get("type") == "qcow2"


def test_settings_of_the_disk_stay() -> None:
    element = restored(
        disk_xml("<driver name='qemu' type='raw' discard='unmap'/><serial>S1</serial><boot order='1'/><iotune/>")
    )
    assert {"serial", "boot", "iotune"} <= {child.tag for child in element}
    driver = element.find("driver")
    assert driver is not None
    assert dict(driver.attrib) == {"name": "qemu", "type": "qcow2", "discard": "unmap"}


def test_disk_without_a_driver_gets_one() -> None:
    driver = restored(DISK, image_format=ImageFormat.RAW).find("driver")
    assert driver is not None
    assert dict(driver.attrib) == {"name": "qemu", "type": "raw"}


def test_empty_disk_gets_a_source() -> None:
    source = restored("<disk type='file'><target dev='vda'/><alias name='a'/></disk>").find("source")
    assert source is not None
    assert source.get("file") == "/r/vda.img"


@pytest.mark.parametrize(
    "nvram",
    [
        "<nvram>/old/VARS.fd</nvram>",
        "<nvram template='/usr/share/x'>/old/VARS.fd</nvram>",
        "<nvram type='file'><source file='/old/VARS.fd'/></nvram>",
        "<nvram template='/usr/share/x' type='file'>\n  <source file='/old/VARS.fd'/>\n</nvram>",
    ],
)
def test_restored_nvram_is_where_it_was_written(nvram: str) -> None:
    """Since libvirt 8.5 there is a source element if it is not just a path."""
    text = domain_xml.with_disks(xml(more=f"<os>{nvram}</os>"), {}, nvram_path="/r/nvram")
    assert domain_xml.parse(text).nvram_path == "/r/nvram"
    assert "/old/VARS.fd" not in text


def test_nvram_that_was_not_restored_stays_as_it_was() -> None:
    text = domain_xml.with_disks(xml(more="<os><nvram>/old/VARS.fd</nvram></os>"), {})
    assert domain_xml.parse(text).nvram_path == "/old/VARS.fd"


def test_disk_that_was_not_restored_stays_as_it_was() -> None:
    assert domain_xml.parse(domain_xml.with_disks(xml(), {"vdz": ("/r/vdz.raw", ImageFormat.RAW)})) == domain_xml.parse(
        xml()
    )


@pytest.mark.parametrize(
    ("seclabels", "expected"),
    [
        ("", []),
        ("<seclabel type='dynamic' model='dac' relabel='yes'/>", []),
        ("<seclabel type='none' model='apparmor'><label>x</label></seclabel>", []),
        ("<seclabel type='none'/>", []),
        (
            (
                "<seclabel type='dynamic' model='dac'><label>+64055:+109</label><imagelabel>+1:+2</imagelabel>"
                "</seclabel>"
                "<seclabel type='dynamic' model='apparmor'><label>libvirt-f000</label></seclabel>"
            ),
            [("dac", "+64055:+109"), ("apparmor", "libvirt-f000")],
        ),
    ],
)
def test_what_confines_qemu_is_read(seclabels: str, expected: list[tuple[str, str]]) -> None:
    xml = f"<domain><name>web</name><uuid>{UUID}</uuid>{seclabels}</domain>"
    assert [(one.model, one.label) for one in domain_xml.parse(xml).security_labels] == expected
