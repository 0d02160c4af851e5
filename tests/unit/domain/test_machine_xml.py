"""What a machine needs of its host is found in the XML, and a restored one uses the restored files."""

from __future__ import annotations

import pytest
from lxml import etree

from tests.unit.builders import UUID
from vbackup.domain import machine_xml
from vbackup.domain.machine_xml import NamedFile, Places, TpmState
from vbackup.errors import UsageError
from vbackup.model import MachineKind


def domain(devices: str = "", system: str = "") -> str:
    return f"<domain><name>web</name><uuid>{UUID}</uuid><os>{system}</os><devices>{devices}</devices></domain>"


def drive(dev: str, inside: str = "", *, device: str = "cdrom", source: str = "<source file='/a'/>") -> str:
    return f"<disk type='file' device='{device}'>{inside}{source}<target dev='{dev}'/></disk>"


def tpm(inside: str = "", more: str = "version='2.0'") -> str:
    return f"<tpm model='tpm-crb'><backend type='emulator' {more}>{inside}</backend></tpm>"


def placed(xml: str, places: Places) -> str:
    root = etree.fromstring(xml)
    machine_xml.place(root, places)
    return etree.tostring(root, encoding="unicode")


def test_files_of_a_direct_boot_are_found() -> None:
    xml = domain(system="<kernel> /k </kernel><initrd>/i</initrd><cmdline>ro</cmdline><dtb/>")
    assert machine_xml.boot_files(xml) == [
        NamedFile(MachineKind.KERNEL, "kernel", "/k"),
        NamedFile(MachineKind.INITRD, "initial RAM disk", "/i"),
    ]
    assert machine_xml.boot_files(domain()) == []


def test_media_are_raw_files_in_drives() -> None:
    drives = [
        drive("sda"),
        drive("fda", device="floppy"),
        drive("sdb", "<driver name='qemu' type='raw'/>"),
        drive("vda", device="disk"),
        drive("sdc", "<driver type='qcow2'/>"),
        drive("sdd", source=""),
        drive("sde", source="<source protocol='http' name='x'/>"),
        drive("sdf", source="<source file='/a'><slices/></source>"),
        drive("sdg", "<encryption format='luks'/>"),
    ]
    files, others = machine_xml.media(domain("".join(drives)))
    assert [(one.what, one.dev, one.path) for one in files] == [
        ("cdrom", "sda", "/a"),
        ("floppy", "fda", "/a"),
        ("cdrom", "sdb", "/a"),
    ]
    assert [one.dev for one in others] == ["sdc", "sde", "sdf", "sdg"], "an empty drive has no medium"


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("", None),
        ("<tpm><backend type='passthrough'/></tpm>", None),
        (tpm(), TpmState("2.0", None)),
        (tpm(more=""), TpmState("2.0", None)),
        (tpm("<source type='dir' path='/t'/>"), TpmState("2.0", "/t")),
        (tpm("<source type='file' path='/t/x'/>", "version='1.2'"), TpmState("1.2", "/t/x", is_file=True)),
        (tpm("<encryption secret='u'/>"), TpmState("2.0", None, secret="u")),
    ],
)
def test_state_of_the_tpm_is_found(devices: str, expected: TpmState | None) -> None:
    assert machine_xml.tpm(domain(devices)) == expected


def test_directory_of_a_tpm_is_that_of_its_version() -> None:
    assert [TpmState(version, None).directory for version in ("2.0", "1.2")] == ["tpm2", "tpm1.2"]


def test_varstore_and_loader_are_found() -> None:
    xml = domain(system="<loader type='rom'> /code </loader><varstore path='/v'/>")
    assert (machine_xml.varstore(xml), machine_xml.loader(xml)) == ((True, "/v"), "/code")
    assert machine_xml.varstore(domain(system="<varstore template='/t'/>")) == (True, None)
    assert (machine_xml.varstore(domain()), machine_xml.loader(domain())) == ((False, None), None)


def test_restored_machine_uses_the_restored_files() -> None:
    kinds = {MachineKind.KERNEL: "/o/kernel", MachineKind.VARSTORE: "/o/varstore", MachineKind.DTB: "/o/dtb"}
    xml = domain(drive("sda"), "<kernel>/k</kernel><initrd>/i</initrd><varstore path='/v' template='/t'/>")
    text = placed(xml, Places(kinds, {"sda": "/o/sda.medium", "sdb": "/o/sdb.medium"}))
    assert "<kernel>/o/kernel</kernel><initrd>/i</initrd>" in text, "what is not restored stays"
    assert '<varstore path="/o/varstore" template="/t"/>' in text
    assert '<source file="/o/sda.medium"/><target dev="sda"/>' in text
    assert "dtb" not in text, "what the definition does not have is not added"
    assert "sdb" not in text


@pytest.mark.parametrize(
    ("before", "knows", "after"),
    [
        ("", True, '<source type="dir" path="/o/tpm"/>'),
        ("<source type='dir' path='/t'/>", True, '<source type="dir" path="/o/tpm"/>'),
        ("<source type='file' path='/t/x'/>", True, '<source type="file" path="/o/tpm/x"/>'),
        ("<source type='dir' path='/t'/>", False, ""),
    ],
)
def test_tpm_is_pointed_to_its_state_where_libvirt_knows_that(before: str, knows: bool, after: str) -> None:
    secret = f"<encryption secret='{UUID}'/>"
    places = Places({MachineKind.TPM: "/o/tpm"}, knows_tpm_source=knows)
    text = placed(domain(tpm(before + secret)), places)
    assert f'<backend type="emulator" version="2.0">{after}<encryption secret="{UUID}"/></backend>' in text


def test_disk_never_becomes_a_medium() -> None:
    xml = domain(drive("sda", device="disk"))
    assert placed(xml, Places(media={"sda": "/o/sda.medium"})) == placed(xml, Places())


def test_path_that_xml_cannot_have_is_told() -> None:
    with pytest.raises(UsageError):
        placed(domain(), Places({MachineKind.KERNEL: "/a\x01b"}))
