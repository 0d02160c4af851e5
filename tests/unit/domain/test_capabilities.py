"""What a libvirt can run, and what it has in place of what it cannot."""

from __future__ import annotations

import pytest

from tests.unit.builders import UUID
from vbackup.domain import capabilities
from vbackup.domain.capabilities import Capabilities
from vbackup.errors import MalformedError
from vbackup.model import SecurityLabel

#: In the words of libvirt 9.0, and shortened.
XML = """<capabilities>
  <host>
    <cpu><arch>x86_64</arch></cpu>
    <secmodel><model>none</model><doi>0</doi></secmodel>
    <secmodel><model>dac</model><doi>0</doi>
      <baselabel type='kvm'>+1:+1</baselabel><baselabel type='qemu'>+64055:+109</baselabel></secmodel>
  </host>
  <guest><os_type>hvm</os_type><arch name='i686'><emulator>/usr/bin/qemu-system-i386</emulator>
    <machine>pc-q35-9.9</machine></arch></guest>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'><wordsize>64</wordsize><emulator>/usr/bin/qemu-system-x86_64</emulator>
      <machine maxCpus='255'>pc-i440fx-7.2</machine><machine canonical='pc-i440fx-7.2'>pc</machine>
      <machine>pc-q35-2.12</machine><machine>pc-q35-7.2</machine><machine>pc-q35-7.10</machine><machine>isapc</machine>
      <domain type='qemu'/><domain type='kvm'><emulator>/usr/bin/kvm</emulator><machine>microvm</machine></domain>
    </arch></guest>
</capabilities>"""


def domain(machine: str, emulator: str = "", arch: str = "x86_64") -> str:
    return (
        f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid>"
        f"<os><type arch='{arch}' machine='{machine}'>hvm</type></os>"
        f"<devices><emulator>{emulator}</emulator></devices></domain>"
    )


@pytest.fixture
def known() -> Capabilities:
    return capabilities.parse(XML)


def test_labels_are_those_of_qemu(known: Capabilities) -> None:
    assert known.labels == (SecurityLabel("dac", "+64055:+109"),)


@pytest.mark.parametrize(
    ("machine", "nearest"),
    [
        ("pc-q35-9.2", "pc-q35-7.10"),  # the newest that is not newer: a guest may not know newer hardware
        ("pc-q35-7.9", "pc-q35-7.2"),
        ("pc-q35-2.4", "pc-q35-2.12"),
        ("pc-q35-rhel9.2.0", "pc-q35-7.10"),
        ("pc-i440fx-focal-1.0", "pc-i440fx-7.2"),
    ],
)
def test_nearest_machine_type(known: Capabilities, machine: str, nearest: str) -> None:
    assert capabilities.hint(domain(machine), known) == f"Its nearest machine type to {machine} is {nearest}."


@pytest.mark.parametrize("machine", ["pc", "pc-q35-7.2", "microvm", "virt-7.2", "none", "pc-q35-" + "9" * 5000])
def test_machine_type_that_is_there_or_like_none(known: Capabilities, machine: str) -> None:
    assert capabilities.hint(domain(machine, "/usr/bin/kvm"), known) == ""


def test_emulator_that_is_not_there(known: Capabilities) -> None:
    assert capabilities.hint(domain("pc", "/usr/libexec/qemu-kvm"), known) == (
        "Its QEMU for x86_64 is /usr/bin/qemu-system-x86_64, /usr/bin/kvm, not /usr/libexec/qemu-kvm."
    )


def test_architecture_that_is_not_there(known: Capabilities) -> None:
    assert capabilities.hint(domain("virt", arch="aarch64"), known) == (
        "It runs guests of the architectures i686, x86_64."
    )


def test_text_that_is_no_xml_is_an_error() -> None:
    with pytest.raises(MalformedError, match="capabilities of libvirt cannot be read"):
        capabilities.parse("no xml")
