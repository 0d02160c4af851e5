"""All that a machine needs is found, and what cannot be had has its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from vbackup.domain import domain_xml, machine_state
from vbackup.domain.machine_state import Machine
from vbackup.domain.state_files import UnsavedError


class Handle:
    """A domain and its host."""

    name, uuid = "web", UUID

    def __init__(self, root: Path, *, is_local: bool = True) -> None:
        self.host = self
        self.is_local, self.has_link = is_local, False
        self.real_uri = f"qemu:///embed?root={root}"


def xml(system: str = "", devices: str = "") -> str:
    return f"<domain><name>web</name><uuid>{UUID}</uuid><os>{system}</os><devices>{devices}</devices></domain>"


def find(root: Path, definition: str, live: str | None = None, *, is_local: bool = True, **more: Any) -> Machine:
    handle: Any = Handle(root, is_local=is_local)
    domain = domain_xml.parse(live or definition)
    values: dict[str, Any] = {"with_media": False, **more}
    return machine_state.find(handle, domain, definition, None, **values)


def contents(machine: Machine) -> dict[str, bytes]:
    return {one.dev or one.kind.value: b"".join(one.content()) for one in machine.found}


def unsaved(machine: Machine) -> list[tuple[str, str, bool]]:
    return [(one.left_out.kind, one.left_out.dev, one.is_unexpected) for one in machine.unsaved]


CDROM = "<disk type='file' device='cdrom'><source file='{}/seed'/><target dev='sda'/></disk>"


def test_whole_machine_is_found(tmp_path: Path) -> None:
    for name in ("nvram", "kernel", "initrd", "dtb", "varstore", "seed"):
        (tmp_path / name).write_bytes(name.encode())
    boot = "".join(f"<{name}>{tmp_path}/{name}</{name}>" for name in ("nvram", "kernel", "initrd", "dtb"))
    machine = find(tmp_path, xml(boot, CDROM.format(tmp_path)), with_media=True)
    found = {name: name.encode() for name in ("nvram", "kernel", "initrd", "dtb")}
    assert contents(machine) == {**found, "sda": b"seed"}
    assert machine.unsaved == []
    assert contents(find(tmp_path, xml(boot, CDROM.format(tmp_path)))) == found, "media only on request"
    assert contents(find(tmp_path, xml(f"<varstore path='{tmp_path}/varstore'/>"))) == {"varstore": b"varstore"}


def test_state_is_of_what_runs_and_what_boots_is_of_the_definition(tmp_path: Path) -> None:
    for name in ("now", "later"):
        (tmp_path / name).write_bytes(name.encode())
    live = xml(f"<nvram>{tmp_path}/now</nvram><kernel>{tmp_path}/now</kernel>")
    definition = xml(f"<nvram>{tmp_path}/later</nvram><kernel>{tmp_path}/later</kernel>")
    assert contents(find(tmp_path, definition, live)) == {"nvram": b"now", "kernel": b"later"}


def test_tpm_of_the_definition_counts_if_the_running_domain_has_none(tmp_path: Path) -> None:
    tpm = xml(devices="<tpm><backend type='emulator'/></tpm>")
    assert unsaved(find(tmp_path, tpm, xml())) == [("tpm", "tpm", False)]
    place = tmp_path / "lib/swtpm" / UUID / "tpm2"
    place.mkdir(parents=True)
    (place / "state").write_bytes(b"keys")
    machine = find(tmp_path, tpm, xml())
    assert [(one.kind.value, one.path) for one in machine.found] == [("tpm", str(place))]


@pytest.mark.parametrize(
    ("system", "devices", "expected"),
    [
        ("<varstore template='/t'/>", "", ("varstore", "varstore", False)),
        ("<varstore path='/nowhere'/>", "", ("varstore", "varstore", True)),
        ("<nvram>/nowhere</nvram>", "", ("nvram", "nvram", True)),
        ("", "<tpm><backend type='emulator'><source path='/nowhere'/></backend></tpm>", ("tpm", "tpm", True)),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path: Path, system: str, devices: str, expected: tuple[str, str, bool]) -> None:
    assert unsaved(find(tmp_path, xml(system, devices))) == [expected]


def test_of_a_domain_on_another_host_nothing_can_be_had(tmp_path: Path) -> None:
    boot = "<nvram>/n</nvram><kernel>/k</kernel>"
    devices = f"<tpm><backend type='emulator'/></tpm>{CDROM.format('/x')}"
    machine = find(tmp_path, xml(boot, devices), is_local=False, with_media=True)
    assert machine.found == []
    assert unsaved(machine) == [
        ("nvram", "nvram", True),
        ("tpm", "tpm", True),
        ("kernel", "kernel", False),
        ("disk", "sda", False),
    ]
    assert all("on another host" in one.left_out.reason for one in machine.unsaved)
    assert unsaved(find(tmp_path, xml("<varstore path='/v'/>"), is_local=False)) == [("varstore", "varstore", True)]


def test_file_is_read_when_it_is_written_to_the_backup(tmp_path: Path) -> None:
    machine = find(tmp_path, xml(f"<kernel>{tmp_path}/kernel</kernel>"))
    with pytest.raises(UnsavedError, match=r"kernel .* cannot be read: No such file"):
        contents(machine)
    (tmp_path / "kernel").write_bytes(b"late")
    assert contents(machine) == {"kernel": b"late"}


def test_secret_of_an_encrypted_tpm_and_odd_media_are_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"sealed")
    source = f"<source type='file' path='{tmp_path}/state'/><encryption secret='{UUID}'/>"
    odd = "<disk type='network' device='cdrom'><source protocol='http' name='x'/><target dev='sdb'/></disk>"
    devices = f"<tpm><backend type='emulator'>{source}</backend></tpm>{odd}"
    machine = find(tmp_path, xml(devices=devices), with_media=True)
    assert contents(machine).keys() == {"tpm"}
    assert unsaved(machine) == [("tpm", f"secret {UUID}", False), ("disk", "sdb", False)]
    assert machine.unsaved[1].left_out.reason == "cdrom that is no raw image file"
