"""The further files of a backup, what it does not have of the definition, and a warning for what cannot be read."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import vbackup
from tests.fake_qemu import FakeQemu
from tests.unit.builders import FIXTURES, UUID, Recorder, fixture_xml
from vbackup.domain import definition, domain_xml
from vbackup.domain.definition import Further
from vbackup.model import HostIdentity


class Handle:
    """A domain and its host."""

    def __init__(self, xml: str, *, is_local: bool = True) -> None:
        self.host = self
        self.is_local = is_local
        self.is_embedded, self.real_uri = False, "test:///default"
        self.libvirt_version = "9.0.0"
        self.hostname = "elsewhere"
        self.xml = xml

    def definition_xml(self) -> str:
        return self.xml


def xml(system: str = "", devices: str = "") -> str:
    return f"<domain><name>käse</name><uuid>{UUID}</uuid><os>{system}</os><devices>{devices}</devices></domain>"


def further(text: str, recorder: Recorder, *, live: str | None = None, is_local: bool = True) -> Further:
    handle: Any = Handle(text, is_local=is_local)
    domain = domain_xml.parse(text if live is None else live)
    monitor: Any = None
    return definition.further(handle, domain, monitor, is_running=live is not None, reporter=recorder)


def test_domain_that_is_off_has_its_definition_only(recorder: Recorder) -> None:
    assert further(xml(), recorder) == Further({"domain.xml": xml().encode()}, ())
    assert recorder.warnings == []


def test_running_domain_has_the_xml_that_it_runs_with_too(recorder: Recorder) -> None:
    live = xml(devices="<emulator/>")
    assert further(xml(), recorder, live=live).files == {"domain.xml": xml().encode(), "live.xml": live.encode()}


def test_what_only_the_definition_has_is_left_out(recorder: Recorder) -> None:
    inactive = (FIXTURES / "differing" / "inactive.xml").read_text()
    found = further(inactive, recorder, live=fixture_xml("differing"))
    assert [(left.kind, left.dev) for left in found.left_out] == [("disk", "vdb"), ("disk", "vde")]
    tpm = xml(devices="<tpm><backend type='emulator'/></tpm>")
    assert [left.kind for left in further(tpm, recorder, live=xml()).left_out] == ["tpm"]
    assert further(tpm, recorder, live=tpm).left_out == (), "the plan has those of the running domain"
    assert recorder.warnings == []


def test_nvram_store_is_in_the_backup(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "nvram").write_bytes(b"variables")
    found = further(xml(f"<nvram>{tmp_path}/nvram</nvram>"), recorder)
    assert (found.files["nvram"], found.left_out, recorder.warnings) == (b"variables", (), [])


def test_nvram_that_is_in_no_file_is_left_out_without_a_warning_each_night(recorder: Recorder) -> None:
    found = further(xml("<nvram type='network'><source protocol='nbd'/></nvram>"), recorder)
    assert [(left.kind, left.dev) for left in found.left_out] == [("nvram", "nvram")]
    assert "source of type network (nbd)" in found.left_out[0].reason
    assert recorder.warnings == []


@pytest.mark.parametrize(("is_local", "said"), [(True, "cannot be read: No such"), (False, "is on another host")])
def test_nvram_store_that_should_be_there_costs_a_warning(recorder: Recorder, is_local: bool, said: str) -> None:
    found = further(xml("<nvram>/nowhere/nvram</nvram>"), recorder, is_local=is_local)
    assert list(found.files) == ["domain.xml"]
    assert said in found.left_out[0].reason
    assert [said in warning for warning in recorder.warnings] == [True]


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
