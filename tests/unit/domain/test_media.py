"""Media of drives are found, and taken out."""

from __future__ import annotations

from tests.unit.builders import UUID
from vbackup.domain import domain_xml, media
from vbackup.domain.media import Medium

XML = (
    f"<domain><name>web</name><uuid>{UUID}</uuid><devices>"
    "<disk type='file' device='disk'><source file='/vda'/><target dev='vda'/></disk>"
    "<disk type='file' device='cdrom'><source file='/cd.iso'/><backingStore/><target dev='sda'/></disk>"
    "<disk type='volume' device='cdrom'><source pool='isos' volume='one'/><target dev='sdb'/></disk>"
    "<disk type='block' device='floppy'><source dev='/dev/fd0'/><target dev='fda'/></disk>"
    "<disk type='network' device='cdrom'><source protocol='https' name='x'/><target dev='sdc'/></disk>"
    "<disk type='file' device='cdrom'><target dev='sdd'/></disk></devices></domain>"
)


def test_media_of_the_host_are_found() -> None:
    found = media.of(XML)
    assert found == [Medium("sda", "/cd.iso"), Medium("sdb", None, "isos", "one"), Medium("fda", "/dev/fd0")]
    assert [str(one) for one in found] == ["/cd.iso", "volume one of pool isos", "/dev/fd0"]


def test_ejected_drive_is_empty_and_still_there() -> None:
    text = media.ejected(XML, ["sda", "sdb"])
    assert media.of(text) == [Medium("fda", "/dev/fd0")]
    root = domain_xml.root_of(text)
    assert len(root.findall("devices/disk")) == 6
    assert {disk.get("type") for disk in root.iterfind("devices/disk[@device='cdrom']")} == {"file", "network"}
    assert media.ejected(XML, []) == XML.replace("'", '"') + "\n"
