"""The definition of a live restore has the export below each disk, and the one after it has no trace of that."""

from __future__ import annotations

import pytest
from lxml import etree

from vbackup.domain import live_xml
from vbackup.errors import UsageError

SOCKET = "/restored/live.sock"
XML = (
    "<domain><name>web</name><devices>"
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2' error_policy='report' discard='unmap'/>"
    "<source file='/restored/vda.qcow2'/><target dev='vda' bus='virtio'/></disk>"
    "<disk type='file' device='disk'>"
    "<driver name='qemu' type='qcow2' discard_no_unref='on'><metadata_cache><max_size unit='bytes'>4096</max_size>"
    "</metadata_cache></driver><source file='/restored/sda.qcow2'/><target dev='sda' bus='scsi'/></disk>"
    "<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>"
    "</devices></domain>"
)
DEVS = ("vda", "sda")


def test_export_is_below_each_disk_and_both_policies_stop() -> None:
    live = live_xml.live(XML, DEVS, SOCKET)
    assert live_xml.pending(live, SOCKET) == DEVS
    root = etree.fromstring(live)
    for dev, disk in zip(DEVS, root.iterfind("devices/disk")):
        driver, source = disk.find("driver"), disk.find("backingStore/source")
        assert driver is not None
        assert source is not None
        assert (driver.get("error_policy"), driver.get("rerror_policy")) == ("stop", "stop")
        assert dict(source.attrib) == {"protocol": "nbd", "name": dev}
        assert disk.find("backingStore/backingStore") is not None  # or libvirt looks for more
    cdrom = root.findall("devices/disk")[2]
    assert [child.tag for child in cdrom] == ["target"]


def test_only_some_disks_are_away() -> None:
    assert live_xml.pending(live_xml.live(XML, ["sda"], SOCKET), SOCKET) == ("sda",)
    assert live_xml.pending(live_xml.live(XML, DEVS, "/other"), SOCKET) == ()


def test_image_of_a_snapshot_above_it_does_not_hide_the_export() -> None:
    live = live_xml.live(XML, ["vda"], SOCKET)
    between = "<backingStore type='file'><format type='qcow2'/><source file='/restored/vda.qcow2'/><backingStore"
    snapshot = live.replace("<backingStore", between, 1).replace("</backingStore>", "</backingStore></backingStore>", 1)
    assert live_xml.pending(snapshot, SOCKET) == ("vda",)


def test_plain_is_what_it_was_and_keeps_what_the_user_has_changed() -> None:
    changed = live_xml.live(XML, DEVS, SOCKET).replace("<name>web</name>", "<name>web</name><title>mine</title>")
    # What libvirt leaves at the end of a pull.
    root = etree.fromstring(changed)
    for backing in root.findall("devices/disk/backingStore"):
        backing.clear()
    plain = live_xml.plain(etree.tostring(root, encoding="unicode"), XML, DEVS)
    expected = etree.fromstring(XML.replace("<name>web</name>", "<name>web</name><title>mine</title>"))
    assert etree.tostring(etree.fromstring(plain), method="c14n") == etree.tostring(expected, method="c14n")


def test_images_are_those_of_disks_with_files() -> None:
    assert live_xml.images(XML) == {dev: f"/restored/{dev}.qcow2" for dev in DEVS}


def test_options_are_those_that_qemu_does_not_tell() -> None:
    assert live_xml.format_options(XML, "vda").document() == {"discard": "unmap"}
    assert live_xml.format_options(XML, "sda").document() == {"discard-no-unref": True, "cache-size": 4096}


def test_path_that_xml_cannot_have_is_refused() -> None:
    with pytest.raises(UsageError, match="control characters"):
        live_xml.live(XML, DEVS, "/a\x01b")
