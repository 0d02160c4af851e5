"""Disks of every kind that a domain can have, found in QEMU and restored byte for byte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import filesystem
from tests.end_to_end.chains import END_BYTES
from tests.lab import DiskSpec, Lab, Machine, References, compare, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command

CDROM = "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>"
FLOPPY = "<disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>"


class Round:
    """Backups with references, restored and compared."""

    def __init__(self, machine: Machine, command: Command, repository: Path, lab: Lab, tmp_path: Path) -> None:
        self.machine, self.command, self.repository, self.lab = machine, command, repository, lab
        self.tmp_path = tmp_path

    def backup_and_compare(self, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
        references = References(self.tmp_path / "references")
        with references.taken(monkeypatch):
            done = self.command(
                "-c", self.lab.uri, "-q", "backup", self.machine.name, "-r", self.repository, "--json", *options
            ).document
        images = references.finish(self.machine)
        output = self.tmp_path / f"restored-{done['id']}"
        self.command("-q", "restore", self.machine.name, "-r", self.repository, "--output", output)
        for disk in done["disks"]:
            compare(output / f"{disk['dev']}.qcow2", images[disk["node_name"]])
        return done


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Path]:
    """A block device of the host."""
    backing = tmp_path / "loop.raw"
    with backing.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    with filesystem.loop_device(backing) as device:
        yield device


def test_all_buses_and_kinds(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = DiskSpec(tmp_path / "base of ünïcode.qcow2")
    base.create()
    subprocess.run(["qemu-io", "-c", "write -P 200 8M 1M", str(base.path)], check=True, capture_output=True)
    folder = tmp_path / "two words"
    folder.mkdir()
    throttled = "<iotune><total_bytes_sec>500000000</total_bytes_sec></iotune>"
    specs = [
        DiskSpec(folder / "dïsk & <one>.qcow2", backing=base.path, driver="copy_on_read='on'"),
        DiskSpec(tmp_path / "disk.qcow2", dev="vdb", inside=f"{throttled}<alias name='ua-my_own.alias'/>"),
        DiskSpec(folder / "disk.qcow2", dev="vdc", driver="iothread='1'"),
        DiskSpec(tmp_path / "scsi.qcow2", dev="sda", bus="scsi", inside="<alias name='ua-9'/>"),
        DiskSpec(tmp_path / "sata.raw", dev="sdb", bus="sata", format="raw"),
        DiskSpec(tmp_path / "ide.qcow2", dev="hdb", bus="ide"),
    ]
    for spec in specs:
        spec.create()
    left = [
        CDROM,
        FLOPPY,
    ]
    for dev, flag in (("vdd", "<readonly/>"), ("vde", "<shareable/>")):
        spec = DiskSpec(tmp_path / f"{dev}.raw", dev=dev, format="raw", size="1M", inside=flag)
        spec.create()
        left.append(spec.xml())
    xml = domain_xml("käse & brot", [spec.xml() for spec in specs] + left, top="<iothreads>1</iothreads>")
    machine = lab.start(xml)
    round_ = Round(machine, command, repository, lab, tmp_path)
    for number, spec in enumerate(specs, start=1):
        machine.write(spec.dev, f"write -P {number} 1M 256k", "write -P 100 8M 64k")
    full = round_.backup_and_compare(monkeypatch)
    assert [disk["dev"] for disk in full["disks"]] == [spec.dev for spec in specs]
    assert {one["dev"]: one["reason"] for one in full["left_out"]} == {
        "hda": "cdrom",
        "fda": "floppy",
        "vdd": "read-only",
        "vde": "shareable: other domains write to it too",
    }
    for number, spec in enumerate(specs, start=50):
        machine.write(spec.dev, f"write -P {number} 2M 128k", "write -z 1M 64k")
    second = round_.backup_and_compare(monkeypatch)
    assert {disk["level"] for disk in second["disks"]} == {"incremental"}
    # IDE writes metadata too; the others copied exactly what was written.
    assert {disk["copied_bytes"] for disk in second["disks"]} == {3 * 65536 + END_BYTES}


def test_block_device(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, loop_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DiskSpec(loop_device, kind="block", format="raw")
    machine = lab.start(domain_xml("block", [spec.xml()]))
    machine.write("vda", "write -P 1 0 1M")
    round_ = Round(machine, command, repository, lab, tmp_path)
    full = round_.backup_and_compare(monkeypatch)
    assert full["disks"][0]["source"] == str(loop_device)
    machine.write("vda", "write -P 2 64k 64k")
    assert round_.backup_and_compare(monkeypatch)["disks"][0]["copied_bytes"] == 65536 + END_BYTES


def test_twenty_eight_disks_in_one_transaction(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    devs = [f"vd{letter}" for letter in letters] + ["vdaa", "vdab"]
    specs = [DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="4M") for dev in devs]
    pcie = "".join(f"<controller type='pci' index='{index}' model='pci-bridge'/>" for index in (1, 2))
    machine = lab.boot("many", specs, devices=pcie)
    for number, dev in enumerate(devs):
        machine.write(dev, f"write -P {number + 1} {number * 64}k 64k")
    round_ = Round(machine, command, repository, lab, tmp_path)
    full = round_.backup_and_compare(monkeypatch)
    assert [disk["dev"] for disk in full["disks"]] == devs
    for number, dev in enumerate(devs):
        machine.write(dev, f"write -P {100 + number} {number * 64}k 4k")
    second = round_.backup_and_compare(monkeypatch)
    assert {disk["copied_bytes"] for disk in second["disks"]} == {65536 + END_BYTES}


def test_disks_are_chosen_by_name(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    specs = [DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="4M") for dev in ("vda", "vdb", "vdc")]
    machine = lab.boot("choice", specs)
    base = ("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json")
    only = command(*base, "--disk", "vda", "vdc").document
    assert [disk["dev"] for disk in only["disks"]] == ["vda", "vdc"]
    assert only["left_out"] == [{"kind": "disk", "dev": "vdb", "reason": "excluded by the user"}]
    rest = command(*base, "--exclude-disk", "vda", "--exclude-disk", "vdc").document
    assert [(disk["dev"], disk["level"]) for disk in rest["disks"]] == [("vdb", "full")]
    both = command(*base).document
    # Each disk goes on from its own newest backup.
    assert [disk["base"] for disk in both["disks"]] == [only["id"], rest["id"], only["id"]]
    assert both["parent"] == rest["id"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--disk", "vdz"), "Disk vdz: domain wrong has no such disk; it has vda."),
        (("--exclude-disk", "vdz"), "Disk vdz: domain wrong has no such disk"),
        (("--disk", "hda"), "Disk hda: it cannot be backed up: cdrom."),
        (("--exclude-disk", "vda"), "Domain wrong has nothing to back up"),
    ],
)
def test_wrong_choice_of_disks_touches_nothing(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    spec = DiskSpec(tmp_path / "vda.qcow2", size="4M")
    spec.create()
    machine = lab.start(domain_xml("wrong", [spec.xml(), CDROM]))
    before = machine.state()
    refused = command("-c", lab.uri, "backup", "wrong", "-r", repository, *options, status=5)
    assert said in refused.stderr
    assert refused.stdout == ""
    assert machine.state() == before
    assert sorted(path.name for path in repository.iterdir()) == ["vbackup.json"]
