"""The further files of a backup, and what it does not have of the definition."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import vbackup
from tests.fake_qemu import FakeQemu
from tests.unit.builders import FIXTURES, UUID, fixture_xml
from vbackup.domain import definition, domain_xml
from vbackup.domain.definition import Further
from vbackup.model import HostIdentity, MachineKind


class Handle:
    """A domain and its host."""

    def __init__(self, xml: str, *, is_local: bool = True) -> None:
        self.host = self
        self.is_local = is_local
        self.is_embedded, self.real_uri = False, "test:///default"
        self.libvirt_version = "9.0.0"
        self.hostname = "elsewhere"
        self.xml = xml

        self.starts_with_host: bool | None = False

    def definition_xml(self) -> str:
        return self.xml

    def autostart(self) -> bool | None:
        return self.starts_with_host


def xml(system: str = "", devices: str = "") -> str:
    return f"<domain><name>käse</name><uuid>{UUID}</uuid><os>{system}</os><devices>{devices}</devices></domain>"


def further(text: str, *, live: str | None = None, **more: Any) -> Further:
    handle: Any = Handle(text)
    domain = domain_xml.parse(text if live is None else live)
    monitor: Any = None
    return definition.further(handle, domain, monitor, is_running=live is not None, **more)


def test_domain_that_is_off_has_its_definition_only() -> None:
    assert further(xml()) == Further({"domain.xml": xml().encode()}, (), autostart=False)


def test_running_domain_has_the_xml_that_it_runs_with_too() -> None:
    live = xml(devices="<emulator/>")
    assert further(xml(), live=live).files == {"domain.xml": xml().encode(), "live.xml": live.encode()}


def test_what_only_the_definition_has_is_left_out() -> None:
    inactive = (FIXTURES / "differing" / "inactive.xml").read_text()
    found = further(inactive, live=fixture_xml("differing"))
    assert [(left.kind, left.dev) for left in found.left_out] == [("disk", "vdb"), ("disk", "vde")]
    shmem = xml(devices="<shmem name='window'/>")
    assert [left.kind for left in further(shmem, live=xml()).left_out] == ["shmem"]
    assert further(shmem, live=shmem).left_out == (), "the plan has those of the running domain"


def test_machine_is_found_and_its_firmware_noted(tmp_path: Path) -> None:
    (tmp_path / "nvram").write_bytes(b"variables")
    found = further(xml(f"<loader>/OVMF.fd</loader><nvram>{tmp_path}/nvram</nvram><kernel>/vmlinuz</kernel>"))
    assert [one.kind for one in found.machine] == [MachineKind.NVRAM, MachineKind.KERNEL]
    assert b"".join(found.machine[0].content()) == b"variables"
    assert found.loader == "/OVMF.fd"


def test_what_cannot_be_had_of_the_machine_is_told() -> None:
    found = further(xml("<nvram type='network'><source protocol='rbd'/></nvram>"))
    assert [(one.left_out.kind, one.left_out.dev) for one in found.unsaved] == [("nvram", "nvram")]


def test_host_is_the_one_that_the_domain_is_on() -> None:
    here: Any = Handle(xml())
    there: Any = Handle(xml(), is_local=False)
    assert definition.host_of(here).name == socket.gethostname()
    assert definition.host_of(there) == HostIdentity("elsewhere", None)


def test_versions_are_those_of_all_three(qemu: FakeQemu) -> None:
    handle: Any = Handle(xml())
    version = qemu.execute("query-version")["qemu"]
    assert definition.versions(handle, qemu) == {
        "vbackup": vbackup.__version__,
        "qemu": f"{version['major']}.{version['minor']}.{version['micro']}",
        "libvirt": "9.0.0",
    }
