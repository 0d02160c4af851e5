"""What keeps a domain's data on the host, apart from its disks, is found in a definition that libvirt wrote."""

from __future__ import annotations

import pytest
from lxml import etree

from tests.unit.builders import fixture_xml
from vbackup.domain import domain_xml, host_state
from vbackup.model import LeftOut


def found(xml: str) -> list[tuple[str, str]]:
    return [(state.left_out.kind, state.name) for state in host_state.find(etree.fromstring(xml))]


def test_everything_in_a_real_definition_is_found() -> None:
    assert found(fixture_xml("state")) == [
        ("tpm", "tpm"),
        ("memory", "memory /capture/nvdimm"),
        ("memory", "memory /capture/virtio-pmem"),
        ("filesystem", "filesystem share"),
        ("filesystem", "filesystem docs"),
        ("shmem", "shmem window"),
        ("hostdev", "hostdev pci 0x0000:0x01:0x00:0x0"),
        ("hostdev", "hostdev usb 0x0951 0x1666"),
        ("hostdev", "hostdev scsi scsi_host0 0:0:1"),
        ("qemu:commandline", "qemu:commandline"),
    ]


def test_all_of_it_is_in_the_domain_with_its_reason() -> None:
    states = domain_xml.parse(fixture_xml("state")).host_state
    assert LeftOut("filesystem share", states[2].reason, kind="filesystem") in states
    assert all("not in the backup" in state.reason for state in states)
    assert "-drive" in states[-1].reason
    assert "hidden.raw" not in str(states), "values can hold passwords"


@pytest.mark.parametrize("name", ["rich", "snapshot", "bitmaps", "off", "efi"])
def test_ordinary_domain_has_none(name: str) -> None:
    assert found(fixture_xml(name)) == []


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        ("<os><loader type='pflash' readonly='yes'>/c</loader></os>", []),
        ("<os><loader type='rom'>/c</loader></os>", []),
        ("<os firmware='efi'><loader type='pflash'/></os>", []),
        ("<os><loader type='pflash'>/c</loader></os>", [("loader", "loader")]),
        ("<os><varstore path='/v.json'/></os>", [("varstore", "varstore")]),
        ("<devices><pstore backend='acpi-erst'><path>/p</path></pstore></devices>", [("pstore", "pstore")]),
        ("<devices><tpm/></devices>", [("tpm", "tpm")]),
        ("<devices><filesystem type='ram'><target dir='/x'/></filesystem></devices>", []),
        ("<devices><filesystem><source socket='/s'/></filesystem></devices>", [("filesystem", "filesystem ?")]),
        ("<devices><memory model='dimm'><target/></memory></devices>", []),
        ("<devices><hostdev type='mdev' model='vfio-ccw'/></devices>", [("hostdev", "hostdev mdev")]),
        ("<launchSecurity type='sev'/>", [("launchSecurity", "launchSecurity sev")]),
        ("<launchSecurity/>", [("launchSecurity", "launchSecurity")]),
        (
            "<os><kernel>/k</kernel><initrd>/i</initrd><cmdline>ro</cmdline><dtb>/d</dtb></os>",
            [("kernel", "kernel"), ("initrd", "initrd"), ("dtb", "dtb")],
        ),
        ("<os><kernel/></os>", []),
    ],
)
def test_other_elements_of_the_schema(xml: str, expected: list[tuple[str, str]]) -> None:
    """What libvirt 9.0 cannot define here, or what only newer ones have."""
    assert found(f"<domain>{xml}</domain>") == expected


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("", False),
        ("<os/>", False),
        ("<os firmware='bios'/>", False),
        ("<os firmware='efi'/>", True),
        ("<os firmware='efi'><loader stateless='yes'/></os>", False),
        ("<os firmware='efi'><varstore/></os>", False),
        ("<os firmware='efi'><loader type='rom'>/c</loader></os>", False),
        ("<os firmware='efi'><loader secure='yes'/></os>", True),
        ("<os><nvram>/x</nvram></os>", True),
    ],
)
def test_firmware_needs_nvram_unless_it_stores_nothing_or_elsewhere(system: str, expected: bool) -> None:
    assert host_state.needs_nvram(etree.fromstring(f"<domain>{system}</domain>")) is expected
