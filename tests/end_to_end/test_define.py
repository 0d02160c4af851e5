"""``vbackup restore --define``: libvirt has the restored domain, as the original or beside it, and it runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end import whole
from tests.end_to_end.chains import levels, reasons
from tests.lab import DiskSpec, Lab, Machine, compare, domain_xml
from tests.unit.builders import FIXTURES, UUID
from tests.unit.domain.test_identity import CROWDED
from vbackup import archive
from vbackup.domain import defining, identity, restored_xml
from vbackup.domain import domain_xml as domain_xml_
from vbackup.domain.host import UNDEFINE_FLAGS, libvirt
from vbackup.domain.identity import Identity
from vbackup.errors import UnsuitableError
from vbackup.model import ImageFormat
from vbackup.operations.restored_machine import TPM_SOURCE_SINCE

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome
    from tests.daemon import Daemon

MAC = "52:54:00:11:22:33"
NIC = f"<interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>"


class Defined:
    """A machine with a backup, and what restores define."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
        self.lab, self.command, self.repository, self.tmp_path = lab, command, repository, tmp_path
        self.spec = DiskSpec(tmp_path / "vda.qcow2", size="8M")
        self.machine = lab.boot("web", [self.spec], devices=NIC, top=f"<uuid>{UUID}</uuid>")
        self.machine.write("vda", "write -P 1 0 1M")

    def backup(self, name: str = "web") -> dict[str, Any]:
        argv = ("-c", self.lab.uri, "-q", "backup", name, "-r", self.repository, "--json")
        return self.command(*argv).document

    def restore(self, output: str, *options: str, status: int = 0) -> Outcome:
        argv = ("-c", self.lab.uri, "restore", "web", "-r", self.repository, "--output", self.tmp_path / output)
        return self.command(*argv, "--json", *options, status=status)

    def names(self) -> list[str]:
        return [handle.name for handle in self.lab.host.domains()]

    def found(self, name: str) -> Machine:
        """A domain that a restore has defined; it is removed at the end of the test."""
        machine = Machine(self.lab.host.domain(name))
        self.lab.machines.append(machine)
        return machine


@pytest.fixture
def defined(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Defined:
    return Defined(lab, command, repository, tmp_path)


def test_lost_domain_is_back_with_one_command_and_its_chain_goes_on(defined: Defined, tmp_path: Path) -> None:
    first = defined.backup()
    defined.lab.remove(defined.machine)
    defined.spec.path.rename(tmp_path / "reference.qcow2")
    document = defined.restore("out", "--start").document
    machine = defined.found("web")
    assert {name: document[name] for name in ("defined", "name", "uuid", "started")} == {
        "defined": True,
        "name": "web",
        "uuid": UUID,
        "started": True,
    }
    assert (machine.handle.uuid, machine.handle.is_active()) == (UUID, True)
    assert identity.mac_addresses(machine.handle.definition_xml()) == {MAC}
    machine.destroy()
    compare(tmp_path / "reference.qcow2", tmp_path / "out" / "vda.qcow2")
    machine.handle.domain.create()
    machine.write("vda", "write -P 2 2M 64k")
    second = defined.backup()
    assert levels(second) == {"vda": "incremental"}, reasons(second)
    assert second["disks"][0]["base"] == first["id"]
    # libvirt's own text is what the file says, with what libvirt adds.
    assert domain_xml_.parse((tmp_path / "out" / "domain.xml").read_text()).uuid == UUID


def test_new_domain_runs_beside_the_original(defined: Defined, tmp_path: Path) -> None:
    defined.backup()
    original = defined.machine.handle.definition_xml()
    document = defined.restore("out", "--define", "--name", "copy", "--start").document
    machine = defined.found("copy")
    assert machine.handle.is_active()
    assert defined.machine.handle.is_active()
    assert machine.handle.uuid == document["uuid"] != UUID
    assert document["domain"]["uuid"] == UUID
    addresses = identity.mac_addresses(machine.handle.definition_xml())
    assert len(addresses) == 1
    assert addresses != {MAC}
    assert defined.machine.handle.definition_xml() == original
    assert document["disks"][0]["checkpoint"] is False
    done = defined.backup("copy")
    assert levels(done) == {"vda": "full"}
    assert done["domain"]["uuid"] == machine.handle.uuid
    machine.destroy()
    defined.machine.destroy()
    compare(defined.spec.path, tmp_path / "out" / "vda.qcow2")


def test_domain_that_is_there_stops_everything_before_a_byte_is_written(defined: Defined, tmp_path: Path) -> None:
    defined.backup()
    for options, state in ((("--define",), "which runs"), (("--start",), "which is off")):
        if state == "which is off":
            defined.machine.destroy()
        said = defined.restore("out", *options, status=5).stderr
        assert f"libvirt already has domain web (UUID {UUID}), {state}: '--name NEW' restores" in said
    assert "choose another name" in defined.restore("out", "--define", "--name", "web", status=5).stderr
    assert not (tmp_path / "out").exists()
    assert defined.names() == ["web"]
    assert defined.spec.path.exists()


def test_xml_that_this_libvirt_refuses_stops_everything_before_a_byte_is_written(
    defined: Defined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another host, whose QEMU is older."""
    defined.backup()
    defined.lab.remove(defined.machine)
    original = restored_xml.rework

    def with_machine(machine: str, emulator: str = "/usr/bin/qemu-system-x86_64") -> None:
        def rework(definition: str, *args: Any, **more: Any) -> Any:
            text = domain_xml_.root_of(definition)
            kind = text.find("os/type")
            assert kind is not None
            kind.set("machine", machine)
            path = text.find("devices/emulator")
            assert path is not None
            path.text = emulator
            return original(domain_xml_.text_of(text), *args, **more)

        monkeypatch.setattr(restored_xml, "rework", rework)

    with_machine("pc-i440fx-99.2")
    said = defined.restore("out", "--define", status=5).stderr
    assert "does not support machine type 'pc-i440fx-99.2'. Its nearest machine type to pc-i440fx-99.2 is pc-i4" in said
    assert "Nothing was written: restore to a directory only, correct the domain.xml" in said
    with_machine("pc", "/usr/libexec/qemu-kvm")
    said = defined.restore("out", "--define", "--name", "copy", status=5).stderr
    assert (
        "Cannot check QEMU binary /usr/libexec/qemu-kvm: No such file or directory. Its QEMU for x86_64 is /usr" in said
    )
    assert not (tmp_path / "out").exists()
    assert defined.names() == []


def test_domain_that_does_not_start_is_restored_and_defined(defined: Defined, tmp_path: Path) -> None:
    """Its port is taken, which libvirt finds out when it starts it."""
    port = "<graphics type='vnc' port='5917' autoport='no'/>"
    defined.lab.remove(defined.machine)
    xml = domain_xml("web", [defined.spec.xml()], devices=NIC + port, top=f"<uuid>{UUID}</uuid>")
    defined.machine = defined.lab.start(xml)
    defined.backup()
    outcome = defined.restore("out", "--start", "--name", "copy", status=1)
    assert "Failed to reserve port 5917. The domain is restored and defined. When the cause is gone" in outcome.stderr
    assert "only one domain at a time can use: vnc port 5917" in outcome.stderr
    machine = defined.found("copy")
    assert not machine.handle.is_active()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["domain.xml", "vda.qcow2"]
    defined.machine.destroy()
    machine.handle.domain.create()


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_whole_machine_is_where_qemu_and_swtpm_without_privileges_look_for_it(
    daemon: Daemon, command: Command, repository: Path, images: Path
) -> None:
    """Disk, UEFI variables, the state of the TPM, and that it starts with the host.

    libvirt gives the files to QEMU's user and takes them back; it changes no directory, so these have to be open.
    """
    machine, spec = whole.backed_up(daemon, command, repository, images, devices=NIC)
    variables = images / "vars.fd"
    original = Path("/var/lib/libvirt/swtpm", UUID, "tpm2")
    (saved,) = repository.glob(f"{UUID}/*/tpm.tar")  # firmware has changed the original's since
    known = archive.unpack(saved.read_bytes())["tpm2-00.permall"]
    argv = ("-c", daemon.uri, "restore", "web", "-r", repository, "--json", "--output")

    (images / "closed").mkdir(mode=0o700)
    said = command(*argv, images / "closed" / "out", "--start", "--name", "new", status=7).stderr
    assert f"may not enter {images}/closed (owner root, mode 0700): choose another directory" in said
    assert not any((images / "closed").iterdir())

    beside = command(*argv, images / "new" / "out", "--start", "--name", "new").document
    new = daemon.defined("new")
    has_source = libvirt.getVersion() >= TPM_SOURCE_SINCE
    state = images / "new" / "out" / "tpm" if has_source else original.parents[1] / beside["uuid"] / "tpm2"
    assert {one["kind"]: one["path"] for one in beside["machine"]} == {
        "nvram": str(images / "new" / "out" / "nvram"),
        "tpm": str(state),
    }
    assert beside["tpm_place"] is None
    assert (new.handle.is_active(), new.handle.domain.autostart()) == (True, 0)
    image = images / "new" / "out" / "vda.qcow2"
    assert [path.owner() == "root" for path in (image, state, state / "tpm2-00.permall")] == [False] * 3
    new.destroy()
    assert (image.owner(), image.stat().st_mode & 0o777) == ("root", 0o600)
    compare(spec.path, image)

    machine.handle.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    original.mkdir(parents=True, exist_ok=True)
    if not has_source:
        said = command(*argv, images / "out", "--define", status=7).stderr
        assert f"{original} already exists, the state of a TPM" in said
        assert not (images / "out").exists()
    shutil.rmtree(original.parent)
    restored = command(*argv, images / "out", "--define").document
    found = daemon.defined("web")
    state = images / "out" / "tpm" if has_source else original
    assert (state / "tpm2-00.permall").read_bytes() == known
    assert (images / "out" / "tpm").exists() == has_source
    assert (images / "out" / "nvram").read_bytes() == variables.read_bytes()
    assert restored["left_out"] == restored["shared"] == []
    assert found.handle.domain.autostart() == 1
    found.handle.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


def test_every_kind_of_domain_that_is_restored_is_one_that_libvirt_defines(lab: Lab) -> None:
    """All XML that tests.capture has taken from real domains, and one with all that an identity is."""
    texts = {path: path.read_text() for path in sorted(FIXTURES.glob("*/*.xml"))}
    texts[Path("crowded.xml")] = CROWDED
    assert len(texts) > 8
    lacking: set[Path] = set()
    for path, text in texts.items():
        live = path.with_name("domain.xml").read_text() if path.name == "inactive.xml" else None
        devs = {disk.dev: disk.path for disk in domain_xml_.parse(live or text).disks}
        for image_format in ImageFormat:
            reworked = restored_xml.rework(text, live, devs, output="/out", keep_others=False)
            images = {dev: (f"/out/{dev}", image_format) for dev in devs}
            nvram = {"nvram_path": "/out/nvram", "nvram_format": ImageFormat.RAW} if reworked.has_nvram else {}
            made = domain_xml_.with_disks(reworked.text, images, **nvram)  # type: ignore[arg-type]
            new = Identity("new", "99999999-2222-4333-8444-555555555555")
            for found in (identity.keep(made), identity.renew(made, new, identity.new_macs(()))):
                try:
                    defining.check(lab.host, found.text)
                except UnsuitableError as err:
                    if "not supported with this QEMU" not in str(err):
                        raise
                    # Such as SPICE, which from Debian 13 on is in a package that QEMU only recommends.
                    lacking.add(path)
                    continue
                handle = defining.define(lab.host, found.text)
                try:
                    assert (handle.name, handle.uuid) == (found.identity.name, found.identity.uuid), path
                    assert {disk.dev for disk in domain_xml_.parse(handle.definition_xml()).disks} == devs.keys()
                finally:
                    handle.domain.undefineFlags(UNDEFINE_FLAGS[1])
    assert len(texts) - len(lacking) > 5
    assert lab.host.domains() == []
