"""A restored domain has exactly the disks of the backup, its firmware's variables, and nothing of the original's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import namespaces
from tests.daemon import wait_for
from tests.lab import DiskSpec, Lab, Machine, compare, domain_xml, qemu_img_info
from tests.unit import builders
from vbackup import machine as this_machine
from vbackup.domain import domain_xml as reader
from vbackup.domain import host_files, nvram
from vbackup.model import HostIdentity, ImageFormat
from vbackup.qemu.qmp_socket import Socket

if TYPE_CHECKING:
    from tests.conftest import Command

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
RUNNING, DEFINED = 1, 2  # VIR_DOMAIN_AFFECT_LIVE, VIR_DOMAIN_AFFECT_CONFIG


class Backups:
    """Backups of one domain into one repository, and their restores."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
        self.lab, self.command, self.repository, self.tmp_path = lab, command, repository, tmp_path
        self.count = 0

    def back_up(self, name: str, *options: str) -> dict[str, Any]:
        argv = ("-c", self.lab.uri, "-q", "backup", name, "-r", self.repository, "--json", *options)
        return self.command(*argv).document

    def restore(self, name: str, *options: str) -> dict[str, Any]:
        """The document of the restore; ``output`` is its directory."""
        self.count += 1
        output = self.tmp_path / f"out{self.count}"
        argv = ("restore", name, "-r", self.repository, "--json", *options, "--output", output)
        outcome = self.command(*argv)
        return {**outcome.document, "output": output, "said": outcome.stderr}

    def refused(self, *argv: str) -> str:
        output = self.tmp_path / "refused"
        said = self.command("restore", *argv, "-r", self.repository, "--output", output, status=5).stderr
        assert not output.exists()
        return said


@pytest.fixture
def backups(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Backups:
    return Backups(lab, command, repository, tmp_path)


def bytes_of(image: Path, pattern: int, *, size: str = "1M") -> bool:
    """True if the first bytes of the image are this one."""
    argv = [
        "qemu-io",
        "-U",
        "-r",
        "-f",
        qemu_img_info(image)["format"],
        "-c",
        f"read -P {pattern} 0 {size}",
        str(image),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "verification failed" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


def defined(lab: Lab, document: dict[str, Any], *, start: bool = False) -> Machine:
    text = Path(document["domain_xml"]).read_text()
    return lab.start(text) if start else lab.define(text)


def left_out(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(left["kind"], left["dev"]) for left in document["left_out"]}


# firmware


@pytest.fixture
def firmware(tmp_path: Path) -> Iterator[Path]:
    """Firmware that libvirt can choose for <os firmware='efi'>, and no other; returns its template of variables.

    It is SeaBIOS, which starts from a flash and leaves the variables alone.
    """
    if namespaces.reason_not_to_enter():
        pytest.skip("/usr/share/qemu cannot be covered here")
    template = tmp_path / "VARS.template.fd"
    template.write_bytes(b"template" * 64 * 1024)
    flash = {"filename": str(SEABIOS), "format": "raw"}
    description = {
        "description": "SeaBIOS in place of UEFI",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": flash,
            "nvram-template": {"filename": str(template), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": [],
        "tags": [],
    }
    with namespaces.covered_firmware() as directory:
        (directory / "10-test.json").write_text(json.dumps(description))
        yield template


def efi(lab: Lab, tmp_path: Path, name: str) -> Machine:
    spec = DiskSpec(tmp_path / "vda.qcow2", size="4M")
    spec.create()
    return lab.define(domain_xml(name, [spec.xml()]).replace("<os>", "<os firmware='efi'>"))


def nvram_of(machine: Machine) -> Path:
    path = reader.parse(machine.handle.live_xml()).nvram_path
    assert path is not None
    return Path(path)


@pytest.mark.parametrize("state", ["running", "off"])
def test_variables_of_firmware_that_libvirt_chose_are_restored_to_a_place_of_their_own(
    backups: Backups, lab: Lab, firmware: Path, tmp_path: Path, state: str
) -> None:
    """Running, the definition does not name the file (libvirt before 9.2); off, nothing does."""
    machine = efi(lab, tmp_path, f"efi-{state}")
    machine.handle.domain.create()
    original = nvram_of(machine)
    original.write_bytes(b"original" * 64 * 1024)  # what the guest has set
    if state == "off":
        machine.destroy()
    done = backups.back_up(machine.name)
    assert ("nvram" in done["files"], done["left_out"]) == (True, [])
    restored = backups.restore(machine.name)
    lab.remove(machine)
    copy = defined(lab, restored, start=True)
    assert nvram_of(copy) == restored["output"] / "nvram"
    assert nvram_of(copy).read_bytes() == b"original" * 64 * 1024
    nvram_of(copy).write_bytes(b"restored" * 64 * 1024)
    lab.remove(copy)
    assert original.read_bytes() == b"original" * 64 * 1024


def test_variables_that_could_not_be_saved_are_told_and_made_anew_elsewhere(
    backups: Backups, lab: Lab, firmware: Path, tmp_path: Path
) -> None:
    """A domain that never ran has none."""
    machine = efi(lab, tmp_path, "efi-new")
    done = backups.back_up("efi-new")
    assert left_out(done) == {("nvram", "nvram")}
    restored = backups.restore("efi-new")
    assert left_out(restored) == {("nvram", "nvram")}
    lab.remove(machine)
    copy = defined(lab, restored, start=True)
    assert nvram_of(copy) == restored["output"] / "nvram"
    assert nvram_of(copy).read_bytes() == firmware.read_bytes()
    lab.remove(copy)


# disks of the running domain and of its definition


def test_restored_domain_has_the_disks_that_ran_each_with_its_own_data(
    backups: Backups, lab: Lab, tmp_path: Path
) -> None:
    """The definition has another vdb, and a cdrom where a disk was plugged in."""
    specs = {dev: DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="4M") for dev in ("vda", "vdb", "vde")}
    specs["sdb"] = DiskSpec(tmp_path / "sdb.qcow2", dev="sdb", bus="scsi", size="4M")
    specs["other"] = DiskSpec(tmp_path / "other.qcow2", dev="vdb", size="8M")
    for spec in specs.values():
        spec.create()
    (tmp_path / "cd.iso").write_bytes(bytes(2048))
    machine = lab.start(domain_xml("differing", [specs[dev].xml() for dev in ("vda", "vdb")]))
    domain = machine.handle.domain
    domain.attachDeviceFlags(specs["sdb"].xml(), RUNNING)
    domain.detachDeviceFlags(specs["vdb"].xml(), DEFINED)
    domain.attachDeviceFlags(specs["other"].xml(), DEFINED)
    domain.attachDeviceFlags(specs["vde"].xml(), DEFINED)
    cdrom = f"<source file='{tmp_path}/cd.iso'/><target dev='sdb' bus='scsi'/><readonly/>"
    domain.attachDeviceFlags(f"<disk type='file' device='cdrom'>{cdrom}</disk>", DEFINED)
    patterns = {"vda": 1, "vdb": 2, "sdb": 3}
    for dev, pattern in patterns.items():
        machine.write(dev, f"write -P {pattern} 0 1M")
    done = backups.back_up("differing")
    assert left_out(done) == {("disk", "vdb"), ("disk", "vde")}
    restored = backups.restore("differing")
    assert left_out(restored) == {("disk", "vdb"), ("disk", "vde"), ("disk", "sdb")}
    assert restored["shared"] == []
    lab.remove(machine)

    copy = defined(lab, restored, start=True)
    opened = {disk.dev: disk.path for disk in reader.parse(copy.handle.live_xml()).disks}
    assert opened == {dev: str(restored["output"] / f"{dev}.qcow2") for dev in patterns}
    assert reader.parse(copy.handle.live_xml()).left_out == ()
    for dev, pattern in patterns.items():
        assert bytes_of(Path(opened[dev] or ""), pattern)


def test_nothing_that_the_original_writes_to_is_in_the_restored_domain(
    backups: Backups, lab: Lab, tmp_path: Path
) -> None:
    """libvirt accepts the definition without it."""
    spec = DiskSpec(tmp_path / "vda.qcow2", size="4M")
    spec.create()
    memory = f"<source><path>{tmp_path}/original-pmem</path></source><target><size unit='M'>128</size></target>"
    devices = (
        f"<filesystem><source dir='{tmp_path}/original-share'/><target dir='share'/></filesystem>"
        f"<serial type='file'><source path='{tmp_path}/original-serial.log'/></serial>"
        f"<memory model='virtio-pmem'>{memory}</memory><shmem name='window'><model type='ivshmem-plain'/></shmem>"
        "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/>"
        "<address bus='0' target='0' unit='1'/></source></hostdev>"
    )
    shared = f"<disk type='file'><source file='{tmp_path}/original-shared.raw'/><target dev='vdb'/><shareable/></disk>"
    top = "<maxMemory slots='4' unit='MiB'>2048</maxMemory>"
    cpu = "<cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB'/></numa></cpu>"
    xml = domain_xml("state", [spec.xml(), shared], devices=devices, top=top + cpu, memory_mib=64)
    arguments = f"<qemu:arg value='-drive'/><qemu:arg value='file={tmp_path}/original.raw,if=none'/>"
    machine = lab.define(xml.replace("</domain>", f"<qemu:commandline>{arguments}</qemu:commandline></domain>"))
    done = backups.back_up("state")
    state = {
        ("memory", f"memory {tmp_path}/original-pmem"),
        ("filesystem", "filesystem share"),
        ("shmem", "shmem window"),
        ("hostdev", "hostdev scsi scsi_host0 0:0:1"),
        ("qemu:commandline", "qemu:commandline"),
        ("disk", "vdb"),
    }
    assert left_out(done) == state

    restored = backups.restore("state")
    assert left_out(restored) == {*state, ("serial", f"serial {tmp_path}/original-serial.log")}
    assert "original-" not in Path(restored["domain_xml"]).read_text()
    for _, dev in state:
        assert f"Not in the restored domain.xml: {dev} (" in restored["said"]

    with_disk = backups.restore("state", "--disk", "vda")
    assert left_out(with_disk) == set()
    serial = ("serial", f"serial {tmp_path}/original-serial.log")
    assert {(left["kind"], left["dev"]) for left in with_disk["shared"]} == {*state, serial}
    assert "still names the original's vdb" in with_disk["said"]
    lab.remove(machine)
    copy = defined(lab, restored)
    assert [disk.path for disk in reader.parse(copy.handle.live_xml()).disks] == [str(restored["output"] / "vda.qcow2")]


# a backup of some disks


def test_backup_of_some_disks_is_not_restored_as_the_domain(backups: Backups, lab: Lab, tmp_path: Path) -> None:
    specs = [DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="4M") for dev in ("vda", "vdb")]
    machine = lab.boot("part", specs)
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 1 0 1M")
    whole = backups.back_up("part")
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 2 0 1M")
    part = backups.back_up("part", "--disk", "vda")

    said = backups.refused("part")
    assert f"Backup {part['id']} was made without disk vdb" in said
    assert f"--backup {whole['id']}" in said
    assert "--mixed" in said
    said = backups.refused("part", "--disk", "vdb")
    assert f"The newest backup before it that has this disk is {whole['id']}" in said

    mixed = backups.restore("part", "--mixed")
    assert {disk["dev"]: disk["backup"] for disk in mixed["disks"]} == {"vda": part["id"], "vdb": whole["id"]}
    assert [bytes_of(mixed["output"] / f"{dev}.qcow2", pattern) for dev, pattern in (("vda", 2), ("vdb", 1))] == [
        True,
        True,
    ]
    assert f"The disks are of different moments (vda of {part['id']}, vdb of {whole['id']})" in mixed["said"]

    alone = backups.restore("part", "--backup", part["id"])
    assert [disk["dev"] for disk in alone["disks"]] == ["vda"]
    assert left_out(alone) == {("disk", "vdb")}
    assert f"Backup {part['id']} was made without vdb" in alone["said"]
    assert str(tmp_path / "vdb.qcow2") not in Path(alone["domain_xml"]).read_text()

    compare(backups.restore("part", "--backup", whole["id"])["output"] / "vda.qcow2", mixed["output"] / "vdb.qcow2")
    asked = backups.restore("part", "--disk", "vda")
    assert [left["dev"] for left in asked["shared"]] == ["vdb"]
    assert str(tmp_path / "vdb.qcow2") in Path(asked["domain_xml"]).read_text()


# one UUID on two hosts


def test_two_machines_with_one_uuid_are_told_apart_by_their_hosts(
    backups: Backups, command: Command, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = "11111111-2222-3333-4444-666666666666"
    made = {}
    for pattern, host in enumerate(("one", "two"), start=1):
        (tmp_path / host).mkdir()
        monkeypatch.setattr(this_machine, "this_host", lambda host=host: HostIdentity(host, f"{host}-id"))
        machine = lab.boot("twin", [DiskSpec(tmp_path / host / "vda.qcow2", size="4M")], top=f"<uuid>{uuid}</uuid>")
        machine.write("vda", f"write -P {pattern} 0 1M")
        argv = ("-c", lab.uri, "-q", "backup", "twin", "-r", backups.repository)
        outcome = command(*argv, "--json")
        made[host] = outcome.document
        assert ("was made on host one" in outcome.stderr) is (host == "two")
        lab.remove(machine)
    assert made["two"]["host"] == {"name": "two", "machine_id": "two-id"}

    said = backups.refused("twin")
    assert f"one (newest: {made['one']['id']}), two (newest: {made['two']['id']})" in said
    for host, pattern in (("one", 1), ("two", 2), ("one-id", 1)):
        restored = backups.restore("twin", "--host", host)
        assert bytes_of(restored["output"] / "vda.qcow2", pattern)
        assert restored["host"]["name"] == host.removesuffix("-id")
        assert "also has backups of this domain from" in restored["said"]
    by_id = backups.restore("twin", "--backup", made["one"]["id"])
    assert bytes_of(by_id["output"] / "vda.qcow2", 1)

    listed = command("list", "-r", backups.repository, "--json").document
    assert [one["host"]["name"] for one in listed["backups"]] == ["one", "two"]
    assert [one["name"] for one in listed["domains"][0]["hosts"]] == ["one", "two"]
    of_one = command("list", "-r", backups.repository, "--host", "one", "--json").document
    assert [one["id"] for one in of_one["backups"]] == [made["one"]["id"]]
    text = command("list", "--all", "-r", backups.repository).stdout
    assert [line.split()[-2] for line in text.splitlines()[1:]] == ["HOST", "one", "two"]
    assert "Host:        two (machine id two-id)" in command("show", "twin", "-r", backups.repository).stdout


# a store in qcow2 format, which QEMU has open


@pytest.fixture
def flash(tmp_path: Path) -> Iterator[tuple[Socket, Path]]:
    """A QEMU with a flash in qcow2 format for variables, as libvirt 10 and later can give one to a domain."""
    code, variables = tmp_path / "CODE.fd", tmp_path / "VARS.qcow2"
    code.write_bytes(SEABIOS.read_bytes())
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(variables), "512k"], check=True)
    drives = [
        f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        f"if=pflash,unit=1,format=qcow2,file={variables}",
    ]
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none", "-nodefaults"]
    argv += [word for drive in drives for word in ("-drive", drive)]
    with subprocess.Popen([*argv, "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off"]) as process:
        try:
            wait_for((tmp_path / "qmp").exists, "QEMU's socket")
            with Socket(f"{tmp_path}/qmp") as monitor:
                yield monitor, variables
        finally:
            process.kill()


def test_qcow2_store_has_what_the_guest_wrote_although_qemu_caches_its_tables(
    flash: tuple[Socket, Path], tmp_path: Path
) -> None:
    monitor, path = flash
    command_line = 'qemu-io -d /machine/system.flash1 "write -P 17 0 64k"'
    monitor.execute("human-monitor-command", {"command-line": command_line})
    torn, whole = tmp_path / "torn.qcow2", tmp_path / "whole.qcow2"
    torn.write_bytes(path.read_bytes())
    assert not bytes_of(torn, 17, size="64k"), "the test shows nothing if the file is complete without being asked for"

    class Handle:
        host = property(lambda self: self)
        is_local = True

    handle: Any = Handle()
    domain = builders.domain(nvram_path=str(path), nvram_format=ImageFormat.QCOW2)
    data = nvram.read(handle, domain, monitor, host_files.FilesHere())
    assert data is not None
    whole.write_bytes(data.data)
    assert bytes_of(whole, 17, size="64k")
    subprocess.run(["qemu-img", "check", "-q", str(whole)], check=True)
