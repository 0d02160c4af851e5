"""QEMU finds an image corrupt while the domain runs, and then lists no nodes at all: the other disks go on.

A table entry of the image is damaged while the domain is off. The guest's write to that place makes QEMU mark the image
as corrupt and close it ("Block device X is ejected").
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import DiskSpec, Lab, Machine, domain_xml
from vbackup.domain.passthrough import Passthrough
from vbackup.errors import QmpError

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

MIB = 1 << 20
SIZES = {"vda": 4 * MIB, "vdb": 12 * MIB, "vdc": 4 * MIB}
#: Where vda gets damaged: the last MiB, which a slow job has not reached yet.
BAD_OFFSET = 3 * MIB
#: Of a table entry: no other entry points to the same cluster.
COPIED = 1 << 63
NAME, UUID = "damaged", "66666666-2222-3333-4444-555555555555"


def damage(path: Path, offset: int, *, unreadable: bool = False) -> bytes:
    """Let the L2 entry of the cluster at ``offset`` point to the image's own L1 table, and return what is there.

    QEMU refuses to write there. With ``unreadable`` it points to no cluster's beginning, and QEMU refuses to read too.
    (qcow2 version 3, see QEMU's docs/interop/qcow2.txt.)
    """
    with path.open("r+b") as file:

        def number_at(position: int) -> int:
            file.seek(position)
            return int.from_bytes(file.read(8), "big")

        cluster_bytes, l1_table = 1 << (number_at(16) & 0xFFFFFFFF), number_at(40)
        cluster, per_table = offset // cluster_bytes, cluster_bytes // 8
        l2_table = number_at(l1_table + cluster // per_table * 8) & ~COPIED
        position = l2_table + cluster % per_table * 8
        assert number_at(position), "nothing is allocated there"
        file.seek(position)
        file.write((l1_table | COPIED | (512 if unreadable else 0)).to_bytes(8, "big"))
        file.seek(l1_table)
        return file.read(cluster_bytes)


class Damaged:
    """vda, and two healthy disks: vdb, and vdc with a layer below."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
        self.lab, self.command, self.repository, self.directory = lab, command, repository, tmp_path
        self.disks = {dev: bytearray(size) for dev, size in SIZES.items()}
        backing = DiskSpec(tmp_path / "backing.qcow2", size=str(SIZES["vdc"]))
        backing.create()
        self.specs = [
            DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size=str(size), backing=backing.path if dev == "vdc" else None)
            for dev, size in SIZES.items()
        ]
        for spec in self.specs:
            spec.create()
        self.machine = self.start()
        for dev, size in SIZES.items():
            self.write(dev, 1, 0, size)

    def start(self) -> Machine:
        return self.lab.start(domain_xml(NAME, [spec.xml() for spec in self.specs], top=f"<uuid>{UUID}</uuid>"))

    def write(self, dev: str, pattern: int, offset: int, length: int) -> None:
        self.machine.write(dev, f"write -P {pattern} {offset} {length}")
        self.disks[dev][offset : offset + length] = bytes([pattern]) * length

    def damage(self) -> None:
        """While the domain is off."""
        self.lab.remove(self.machine)
        there = damage(self.directory / "vda.qcow2", BAD_OFFSET)
        self.disks["vda"][BAD_OFFSET : BAD_OFFSET + len(there)] = there
        self.machine = self.start()

    def break_down(self) -> None:
        """The guest writes there; QEMU closes the image."""
        command = f'qemu-io -d {self.machine.qdev("vda")} "write -P 9 {BAD_OFFSET} 64k"'
        self.machine.execute("human-monitor-command", command_line=command)
        with pytest.raises(QmpError, match="is ejected"):
            self.machine.execute("query-named-block-nodes", flat=True)

    def run(self, *arguments: str | Path, status: int = 0) -> Outcome:
        return self.command("-c", self.lab.uri, "-q", *arguments, status=status)

    def backup(self, *options: str, status: int = 0) -> Outcome:
        return self.run("backup", NAME, "-r", self.repository, "--json", *options, status=status)

    def check(self, done: dict[str, Any]) -> dict[str, str]:
        """Restore, compare, and return the levels."""
        output = self.directory / "out"
        options = ("--backup", done["id"], "--output", output, "--format", "raw")
        self.command("-q", "restore", NAME, "-r", self.repository, *options)
        for disk in done["disks"]:
            restored = output / f"{disk['dev']}.raw"
            assert restored.read_bytes() == self.disks[disk["dev"]], disk["dev"]
            restored.unlink()
        for path in output.iterdir():
            path.unlink()
        output.rmdir()
        return {disk["dev"]: disk["level"] for disk in done["disks"]}

    def entries(self) -> list[str]:
        return sorted(path.name for path in (self.repository / UUID).iterdir() if path.is_dir())

    def left(self) -> dict[str, Any]:
        """What is in QEMU, asked in ways that a corrupt image does not spoil."""
        graph = self.machine.execute("x-debug-query-block-graph")
        inserted = (device.get("inserted") for device in self.machine.execute("query-block"))
        return {
            "nodes": sorted(node["name"] for node in graph["nodes"] if node["type"] == "block-driver"),
            "bitmaps": {
                node["node-name"]: sorted(bitmap["name"] for bitmap in node.get("dirty-bitmaps", []))
                for node in inserted
                if node is not None
            },
            "jobs": self.machine.execute("query-jobs"),
            "fdsets": self.machine.execute("query-fdsets"),
        }


@pytest.fixture
def damaged(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Damaged:
    return Damaged(lab, command, repository, tmp_path)


def after_transaction(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Do something as soon as a backup has begun."""
    original = Passthrough.execute

    def execute(monitor: Passthrough, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        reply = original(monitor, command, arguments, fd=fd)
        kinds = {action["type"] for action in arguments["actions"]} if command == "transaction" else set()
        if "blockdev-backup" in kinds:
            what()
        return reply

    monkeypatch.setattr(Passthrough, "execute", execute)


def assert_told(said: str, damaged: Damaged) -> None:
    path = damaged.directory / "vda.qcow2"
    assert f"Disk vda: QEMU found its image {path} corrupt" in said
    assert f"'qemu-img check -r all {path}'" in said
    assert "--exclude-disk vda backs up the other disks" in said


def test_image_found_corrupt_before_a_backup_does_not_hinder_the_other_disks(damaged: Damaged) -> None:
    full = damaged.backup().document
    damaged.damage()
    damaged.write("vdb", 2, 0, 65536)
    damaged.write("vdc", 2, 65536, 65536)
    damaged.break_down()

    before = damaged.left()
    assert_told(damaged.backup(status=5).stderr, damaged)
    assert (damaged.left(), damaged.entries()) == (before, [full["id"]])
    healthy = ("--exclude-disk", "vda")
    done = damaged.backup(*healthy).document
    # Where QEMU describes only the active layers, the bitmaps below them are unknown.
    assert damaged.check(done) == {"vdb": "incremental", "vdc": "full"}
    assert "the image of another disk is corrupt" in done["disks"][1]["reason"]
    damaged.write("vdb", 3, 65536, 65536)
    assert damaged.check(damaged.backup(*healthy).document)["vdb"] == "incremental"
    assert {name: damaged.left()[name] for name in ("nodes", "jobs", "fdsets")} == {
        name: before[name] for name in ("nodes", "jobs", "fdsets")
    }

    listed = damaged.run("bitmap", "list", NAME)
    assert_told(listed.stderr, damaged)
    assert {line.split()[0] for line in listed.stdout.splitlines()[1:]} == {"vdb", "vdc"}
    forgotten = damaged.run("forget", NAME, "-r", damaged.repository, "--json", status=5)
    assert_told(forgotten.stderr, damaged)
    assert [disk["dev"] for disk in forgotten.document["unopened"]] == ["vda", "vdc"]
    assert {claim["dev"] for claim in forgotten.document["removed"]} == {"vdb", "vdc"}
    assert not any(damaged.left()["bitmaps"].values())
    damaged.run("recover", NAME, "-r", damaged.repository)

    # RepairedImage, all is as ever.
    damaged.lab.remove(damaged.machine)
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", str(damaged.directory / "vda.qcow2")], check=True)
    damaged.machine = damaged.start()
    damaged.write("vda", 4, BAD_OFFSET, MIB)
    assert set(damaged.check(damaged.backup().document)) == {"vda", "vdb", "vdc"}


@pytest.mark.parametrize("options", [(), ("--fleecing",)], ids=["plain", "fleecing"])
def test_image_found_corrupt_in_mid_job_leaves_nothing(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], tmp_path: Path
) -> None:
    full = damaged.backup().document
    damaged.damage()
    for dev in SIZES:
        damaged.write(dev, 2, MIB, 65536)
    before = damaged.left()
    if options:
        (tmp_path / "fleecing").mkdir()
        options = (*options, str(tmp_path / "fleecing"))
    with monkeypatch.context() as patch:
        after_transaction(patch, damaged.break_down)
        failed = damaged.backup("--level", "full", "--speed", "1M", *options, status=5)
    assert_told(failed.stderr, damaged)
    assert "Could not" not in failed.stderr
    assert json.loads(failed.stdout)["status"] == 5
    after = damaged.left()
    assert {name: after[name] for name in ("nodes", "jobs", "fdsets")} == {
        name: before[name] for name in ("nodes", "jobs", "fdsets")
    }
    del before["bitmaps"]["libvirt-3-format"]
    assert (after["bitmaps"], damaged.entries()) == (before["bitmaps"], [full["id"]])
    done = damaged.backup("--exclude-disk", "vda").document
    assert damaged.check(done) == {"vdb": "incremental", "vdc": "full"}


def test_disk_that_was_copied_before_its_image_was_found_corrupt_is_in_the_backup(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job waits for those of the other disks, and what it has copied is all the more worth keeping."""
    damaged.damage()
    original = Passthrough.execute
    broken = []

    def ended(job: dict[str, Any]) -> bool:
        return bool(job["status"] == "pending" and job["id"].endswith("-vda"))

    def execute(monitor: Passthrough, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        reply = original(monitor, command, arguments, fd=fd)
        if command == "query-jobs" and not broken and any(ended(job) for job in reply):
            broken.append(True)
            damaged.break_down()
        return reply

    with monkeypatch.context() as patch:
        patch.setattr(Passthrough, "execute", execute)
        done = damaged.backup("--speed", "4M")
    assert broken
    assert set(damaged.check(done.document)) == {"vda", "vdb", "vdc"}


def test_image_found_corrupt_by_the_backup_of_a_domain_that_is_off(damaged: Damaged) -> None:
    full = damaged.backup().document
    damaged.machine.destroy()
    damage(damaged.directory / "vda.qcow2", BAD_OFFSET, unreadable=True)
    failed = damaged.backup("--level", "full", status=5)
    assert_told(failed.stderr, damaged)
    assert "Could not" not in failed.stderr
    assert damaged.entries() == [full["id"]]
    done = damaged.backup("--exclude-disk", "vda").document
    assert damaged.check(done) == {"vdb": "incremental", "vdc": "incremental"}
