"""A restored domain is defined and started, or it is said beforehand why not; libvirt's test driver is the host."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder
from tests.unit.domain.test_defining import OTHER, names, xml
from vbackup.domain import defining, domain_xml, driver, identity, swtpm
from vbackup.domain.capabilities import Capabilities
from vbackup.domain.driver import Directories
from vbackup.domain.host import Host
from vbackup.domain.restored_xml import RestoredXml
from vbackup.errors import (
    ConnectionLostError,
    HostUnreachableError,
    MonitorError,
    RestoredOnlyError,
    Status,
    StorageError,
    UnsuitableError,
)
from vbackup.files import user_name
from vbackup.model import MachineFile, MachineKind, SecurityLabel
from vbackup.operations import restored_domain, restored_machine
from vbackup.operations.restored_domain import DefinedDomain, DefineRequest, Prepared
from vbackup.operations.restored_machine import Placed

NIC = "<interface type='user'><mac address='52:54:00:00:00:01'/></interface>"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def prepare(
    host: Host,
    recorder: Recorder,
    *,
    text: str | None = None,
    output: Path = Path("/"),
    others: bool = False,
    **how: Any,
) -> Prepared:
    restored = RestoredXml(text or xml("web", UUID, devices=NIC), (), (), has_nvram=False, keeps_others=others)
    return restored_domain.prepare(DefineRequest(**how), restored, host=host, output=output, reporter=recorder)


def define(prepared: Prepared, recorder: Recorder, *, autostart: bool = False) -> DefinedDomain:
    return restored_domain.define(prepared, Path("/out dir/domain.xml"), autostart=autostart, reporter=recorder)


def test_original_is_defined_as_it_was_and_starts_with_the_host_as_it_did(host: Host, recorder: Recorder) -> None:
    prepared = prepare(host, recorder)
    assert names(host) == []
    assert define(prepared, recorder, autostart=True) == DefinedDomain("web", UUID, started=False)
    made = host.domain("web")
    assert (made.uuid, made.is_active(), made.domain.autostart()) == (UUID, False, 1)
    assert identity.mac_addresses(made.definition_xml()) == {"52:54:00:00:00:01"}
    assert recorder.warnings == []


def test_new_domain_is_beside_the_original_and_does_not_start_with_the_host(host: Host, recorder: Recorder) -> None:
    host.connection.defineXML(xml("web", UUID, devices=NIC)).create()
    prepared = prepare(host, recorder, name="new", start=True)
    done = define(prepared, recorder, autostart=True)
    made = host.domain("new")
    assert done == DefinedDomain("new", made.uuid, started=True)
    assert made.uuid != UUID
    assert made.is_active()
    assert made.domain.autostart() == 0
    assert len(defining.mac_addresses(host)) == 2
    assert domain_xml.parse(prepared.text).uuid == made.uuid


def test_taken_name_is_found_before_anything_is_written_and_again_at_the_end(host: Host, recorder: Recorder) -> None:
    prepared = prepare(host, recorder)
    host.connection.defineXML(xml("web", UUID))
    with pytest.raises(UnsuitableError, match="already has domain web"):
        prepare(host, recorder)
    with pytest.raises(RestoredOnlyError) as caught:
        define(prepared, recorder)
    assert caught.value.status == Status.UNSUITABLE
    assert str(caught.value).endswith(
        "The disks are restored, but the domain is not defined. To define it later, run: virsh -c "
        f"{host.uri} define '/out dir/domain.xml'"
    )
    assert "52:54" not in host.domain("web").definition_xml(), "the other domain was replaced"


def test_domain_that_libvirt_refuses_to_start_stays(
    host: Host, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(host, recorder, start=True)

    def refuse(_handle: object) -> None:
        raise MonitorError("libvirt could not start domain web: no memory.")

    monkeypatch.setattr(defining, "start", refuse)
    with pytest.raises(
        RestoredOnlyError, match=r"no memory\. The domain is restored and defined\. When .*, run: virsh .* start web$"
    ):
        define(prepared, recorder)
    assert names(host) == ["web"]


def test_autostart_that_cannot_be_set_is_only_a_warning(
    host: Host, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_handle: object) -> None:
        raise MonitorError("libvirt could not let domain web start with the host: no.")

    monkeypatch.setattr(defining, "set_autostart", refuse)
    assert define(prepare(host, recorder), recorder, autostart=True).name == "web"
    assert recorder.warnings == [
        "libvirt could not let domain web start with the host: no. The original had that (autostart)."
    ]


def test_xml_that_libvirt_refuses_is_found_before_anything_is_written(host: Host, recorder: Recorder) -> None:
    with pytest.raises(UnsuitableError, match="could not accept the XML of domain web"):
        prepare(host, recorder, text=xml("web", UUID, more="<nonsense/>"))
    assert names(host) == []


def test_what_keeps_a_domain_from_starting_is_a_warning_unless_it_is_to_be_started(
    host: Host, recorder: Recorder
) -> None:
    text = xml("web", UUID, devices="<interface type='bridge'><source bridge='nobridge0'/></interface>")
    prepare(host, recorder, text=text)
    assert recorder.warnings == ["Domain web cannot be started yet: its bridge nobridge0 is not on this host."]
    with pytest.raises(UnsuitableError, match=r"could not be started here: its bridge nobridge0 is not .*without --st"):
        prepare(host, recorder, text=text, start=True)


def test_domain_whose_firmware_is_not_here_is_not_started(host: Host, recorder: Recorder) -> None:
    text = xml("web", UUID).replace("</type></os>", "</type><loader>/gone/OVMF.fd</loader></os>")
    assert "OVMF" in text
    assert prepare(host, recorder, text=text).identity.name == "web"
    with pytest.raises(UnsuitableError, match=r"its firmware /gone/OVMF\.fd is not on this host"):
        prepare(host, recorder, text=text, start=True)


def test_drive_whose_medium_is_gone_is_empty(host: Host, recorder: Recorder) -> None:
    drive = "<disk type='file' device='cdrom'><source file='/gone.iso'/><target dev='hdc'/></disk>"
    prepared = prepare(host, recorder, text=xml("web", UUID, devices=drive))
    assert recorder.warnings == ["The drive hdc is empty: /gone.iso is not on this host."]
    assert "gone.iso" not in prepared.text
    assert "hdc" in prepared.text


def test_medium_that_is_restored_stays_in_its_drive(host: Host, recorder: Recorder) -> None:
    drive = "<disk type='file' device='cdrom'><source file='/out/hdc.medium'/><target dev='hdc'/></disk>"
    restored = RestoredXml(xml("web", UUID, devices=drive), (), (), has_nvram=False)
    machine = [Placed(MachineFile(MachineKind.MEDIUM, 1, "sha256:0", None, "hdc"), Path("/out/hdc.medium"))]
    prepared = restored_domain.prepare(
        DefineRequest(), restored, machine=machine, host=host, output=Path("/"), reporter=recorder
    )
    assert "/out/hdc.medium" in prepared.text
    assert recorder.warnings == []


def test_libvirt_that_was_restarted_in_the_meantime_is_found_again(
    host: Host, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(host, recorder)
    reopened = []
    monkeypatch.setattr(Host, "is_alive", lambda _host: bool(reopened))
    monkeypatch.setattr(Host, "reopen", lambda _host: reopened.append(True))
    assert define(prepared, recorder).name == "web"
    assert reopened == [True]


def test_part_of_a_domain_is_no_new_domain(host: Host, recorder: Recorder) -> None:
    assert prepare(host, recorder, others=True).identity.uuid == UUID
    with pytest.raises(UnsuitableError, match="two domains must not write to: leave --name out"):
        prepare(host, recorder, others=True, name="new")


def test_host_elsewhere_does_not_have_the_disks(
    host: Host, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "is_local", False)
    with pytest.raises(UnsuitableError, match="is on another host, which does not have what is restored here"):
        prepare(host, recorder)


def test_saved_memory_of_a_lost_domain_is_not_resumed(
    host: Host, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "directories", lambda _uri: Directories(tmp_path / "nvram", tmp_path / "swtpm"))
    saved = tmp_path / "save" / "web.save"
    saved.parent.mkdir()
    saved.touch()
    assert prepare(host, recorder, name="new").identity.name == "new"
    with pytest.raises(StorageError, match=f"{saved} has the memory of a domain that had the name web, .*: move it aw"):
        prepare(host, recorder)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        Path(path).chmod(0o711)
        yield Path(path)


def test_directory_that_qemu_cannot_enter_is_refused(
    host: Host, recorder: Recorder, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defining, "of", lambda _host: Capabilities((), (SecurityLabel("dac", "+65534:+65534"),)))
    assert prepare(host, recorder, output=reachable / "new").identity.name == "web"
    elsewhere = f"<disk type='file'><source file='{reachable}/closed/vda'/><target dev='vda'/></disk>"
    as_root = xml("web", UUID, more="<seclabel type='static' model='dac'><label>+0:+0</label></seclabel>")
    (reachable / "closed").mkdir(mode=0o700)
    if os.geteuid() == 0:
        assert prepare(host, recorder, text=as_root, output=reachable / "closed").identity.name == "web"
    (reachable / "link").symlink_to("closed")
    with pytest.raises(StorageError, match=f"may not enter {reachable}/closed"):
        prepare(host, recorder, text=xml("web", UUID, devices=elsewhere), output=reachable / "new")
    for name in ("closed", "link"):
        with pytest.raises(StorageError) as caught:
            prepare(host, recorder, output=reachable / name / "new")
        said = str(caught.value)
        assert f"who may not enter {reachable}/closed (owner {user_name(os.geteuid())}, mode 0700): choose" in said
        assert f"'chmod o+x {reachable}/closed'" in said


def test_new_uuid_is_random(host: Host, recorder: Recorder) -> None:
    made = {prepare(host, recorder, name="new").identity.uuid for _ in range(3)}
    assert len(made) == 3
    assert OTHER not in made


# the state of an emulated TPM


@pytest.fixture
def tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state that is restored, and a libvirt that looks for it in ``tmp_path``/swtpm/UUID; returns that directory."""
    (tmp_path / "out" / "tpm").mkdir(parents=True)
    (tmp_path / "out" / "tpm" / "tpm2-00.permall").write_bytes(b"keys")

    def place(definition: str, *_more: object) -> Path:
        return tmp_path / "swtpm" / identity.of(definition).uuid / "tpm2"

    monkeypatch.setattr(restored_machine, "tpm_place", place)
    monkeypatch.setattr(swtpm, "owner", lambda _uri: None)
    return tmp_path / "swtpm"


def with_tpm(host: Host, recorder: Recorder, tmp_path: Path, **how: Any) -> tuple[Prepared, tuple[Placed, ...]]:
    file = MachineFile(MachineKind.TPM, 4, "sha256:0", None)
    machine = (Placed(file, tmp_path / "out" / "tpm"),)
    devices = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    restored = RestoredXml(xml("web", UUID, devices=devices), (), (), has_nvram=False)
    request = DefineRequest(**how)
    return restored_domain.prepare(
        request, restored, machine=machine, host=host, output=Path("/"), reporter=recorder
    ), machine


@pytest.mark.parametrize("name", [None, "new"])
def test_state_of_the_tpm_is_moved_to_the_place_of_the_uuid(
    host: Host, recorder: Recorder, tpm: Path, tmp_path: Path, name: str | None
) -> None:
    prepared, machine = with_tpm(host, recorder, tmp_path, name=name)
    assert not tpm.exists()
    done = define(prepared, recorder)
    place = tpm / done.uuid / "tpm2"
    assert (done.uuid == UUID) is (name is None)
    assert (place / "tpm2-00.permall").read_bytes() == b"keys"
    assert not machine[0].path.exists(), "the keys are in two places"
    assert [one.path for one in restored_domain.place_machine(prepared, machine)] == [place]


def test_state_that_libvirt_has_stops_everything(host: Host, recorder: Recorder, tpm: Path, tmp_path: Path) -> None:
    (tpm / UUID / "tpm2").mkdir(parents=True)
    with pytest.raises(StorageError, match="already exists, the state of a TPM"):
        with_tpm(host, recorder, tmp_path)


def test_domain_that_is_not_defined_has_its_tpm_only_restored(
    host: Host, recorder: Recorder, tpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MonitorError("libvirt could not define domain web: no.")

    prepared, machine = with_tpm(host, recorder, tmp_path, start=True)
    monkeypatch.setattr(defining, "define", refuse)
    with pytest.raises(RestoredOnlyError, match=r"no\. The disks are restored, but the domain is not def") as caught:
        define(prepared, recorder, autostart=True)
    assert not (tpm / UUID).exists()
    assert (machine[0].path / "tpm2-00.permall").exists()
    # A domain that is defined without these starts with an empty TPM.
    place, virsh = tpm / UUID / "tpm2", f"virsh -c {host.uri}"
    commands = str(caught.value).partition("To define it later, run: ")[2].split(" && ")
    assert commands == [
        f"mkdir -p {place}",
        f"cp -rT {machine[0].path} {place}",
        f"{virsh} define '/out dir/domain.xml'",
        f"{virsh} autostart web",
        f"{virsh} start web",
    ]


@pytest.mark.parametrize("now", ["defined", "not defined", "unknown"])
def test_connection_that_breaks_while_the_domain_is_defined_takes_no_tpm_from_it(
    host: Host, recorder: Recorder, tpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    prepared, machine = with_tpm(host, recorder, tmp_path)
    defined = defining.define

    def lose(host: Host, text: str) -> None:
        if now == "defined":
            defined(host, text)
        raise ConnectionLostError("The connection to libvirt broke.")

    def reopen() -> None:
        if now == "unknown":
            raise HostUnreachableError(None, "gone")

    monkeypatch.setattr(defining, "define", lose)
    monkeypatch.setattr(host, "reopen", reopen)
    if now == "defined":
        assert define(prepared, recorder) == DefinedDomain("web", UUID, started=False)
    else:
        with pytest.raises(RestoredOnlyError, match="The connection to libvirt broke"):
            define(prepared, recorder)
    assert (tpm / UUID / "tpm2" / "tpm2-00.permall").exists() is (now != "not defined")
    assert machine[0].path.exists() is (now != "defined")


def test_tpm_that_the_xml_places_gets_its_owner_only(
    host: Host, recorder: Recorder, tpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt from 10.10 on finds it in the output directory."""
    given = []
    monkeypatch.setattr(restored_machine, "tpm_place", lambda *_: None)
    monkeypatch.setattr(swtpm, "give", lambda path, to: given.append((path, to)))
    prepared, machine = with_tpm(host, recorder, tmp_path)
    define(prepared, recorder)
    assert given == [(machine[0].path, None)]
    assert restored_domain.place_machine(prepared, machine) == machine
    assert not tpm.exists()
