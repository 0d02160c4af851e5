"""What virsh does while a backup runs: it ends committed and right, or fails and leaves nothing."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import Daemon, wait_for
from tests.end_to_end.chains import levels
from tests.end_to_end.test_daemon import Running, entries, start_slow_backup
from tests.lab import DiskSpec, Machine, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command

MIB = 1 << 20
SIZE_BYTES = 8 * MIB
#: A full takes 16 seconds, time enough for what happens in it on a busy machine; then it is made fast.
SLOW = ("--speed", "512k")


@dataclass
class Stage:
    """A defined domain with two full disks, what is on them, and a virsh."""

    machine: Machine
    daemon: Daemon
    command: Command
    repository: Path
    directory: Path  #: of its images
    tmp_path: Path
    disks: dict[str, bytearray]
    runs: list[Running] = field(default_factory=list)
    _count: int = 0

    def virsh(self, *arguments: str | Path, fails: str | None = None) -> str:
        """Run virsh; ``fails`` is what it must say if it is to fail."""
        argv = ["virsh", "-q", "-c", self.daemon.uri, *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode == 0) == (fails is None), done
        assert (fails or "") in done.stderr
        return done.stdout

    def write(self, dev: str, pattern: int, offset: int, length: int = 65536) -> None:
        self.machine.write(dev, f"write -P {pattern} {offset} {length}")
        self.disks[dev][offset : offset + length] = bytes([pattern]) * length

    def moment(self) -> dict[str, bytes]:
        """What is on the disks now."""
        return {dev: bytes(data) for dev, data in self.disks.items()}

    def slow_backup(self) -> Running:
        self.runs.append(start_slow_backup(self.machine, self.daemon, self.repository, *SLOW))
        return self.runs[-1]

    def hurry(self) -> None:
        """Let the jobs go on at full speed."""
        for one in self.machine.execute("query-jobs"):
            if one["status"] == "running":
                self.machine.execute("block-job-set-speed", device=one["id"], speed=0)

    def finish(self, running: Running) -> dict[str, Any]:
        self.hurry()
        status, out, err = running.wait()
        assert status == 0, err
        document: dict[str, Any] = json.loads(out)
        return document

    def check(self, done: dict[str, Any], moment: dict[str, bytes]) -> None:
        """A restore of that backup is byte for byte what was on the disks at that moment."""
        self._count += 1
        output = self.tmp_path / f"out{self._count}"
        options = ("-r", self.repository, "--output", output, "--format", "raw", "--backup", done["id"])
        self.command("-q", "restore", "busy", *options)
        for disk in done["disks"]:
            assert (output / f"{disk['dev']}.raw").read_bytes() == moment[disk["dev"]], disk["dev"]

    def backup(self) -> dict[str, Any]:
        """A further backup, checked."""
        moment = self.moment()
        document = self.command("-c", self.daemon.uri, "-q", "backup", "busy", "-r", self.repository, "--json").document
        self.check(document, moment)
        self.expect_nothing_left()
        return document

    def expect_nothing_left(self) -> None:
        state = self.machine.state()
        assert (state["jobs"], state["fdsets"]) == ([], [])
        assert not [name for name in state["nodes"] if not name.startswith("libvirt-")]
        assert not [name for names in state["bitmaps"].values() for name in names if name.endswith("-working")]
        assert not [name for name in entries(self.repository) if name.endswith(".partial")]


@pytest.fixture
def stage(daemon: Daemon, command: Command, repository: Path, images: Path, tmp_path: Path) -> Iterator[Stage]:
    # The second on SCSI: that one is detached without the help of a guest.
    specs = [
        DiskSpec(images / "vda.qcow2", size="8M"),
        DiskSpec(images / "sda.qcow2", dev="sda", bus="scsi", size="8M"),
    ]
    for spec in specs:
        spec.create()
    machine = daemon.define(domain_xml("busy", [spec.xml() for spec in specs]))
    machine.handle.domain.create()
    made = Stage(machine, daemon, command, repository, images, tmp_path, {s.dev: bytearray(SIZE_BYTES) for s in specs})
    for number, spec in enumerate(specs, 1):
        made.write(spec.dev, number, 0, SIZE_BYTES)
    yield made
    for running in made.runs:
        running.process.kill()
        running.process.communicate()
    daemon.clear()


def test_what_virsh_refuses_or_the_guest_ignores_changes_nothing(stage: Stage) -> None:
    moment = stage.moment()
    running = stage.slow_backup()
    stage.write("vda", 9, 7 * MIB)  # not copied yet
    stage.virsh("blockresize", "busy", "vda", "12M", fails="error")
    stage.virsh("blockcommit", "busy", "vda", "--active", fails="error")
    stage.virsh("save", "busy", stage.directory / "saved", fails="error")
    stage.virsh("managedsave", "busy", fails="error")
    assert stage.virsh("domstate", "busy").strip() == "running"
    stage.virsh("shutdown", "busy")  # a firmware has no ears for the power button
    stage.virsh("reboot", "busy")
    stage.virsh("reset", "busy")
    spec = DiskSpec(stage.directory / "vdc.qcow2", dev="vdc", size="8M")
    spec.create()
    stage.virsh("attach-disk", "busy", spec.path, "vdc", "--subdriver", "qcow2")
    assert running.process.poll() is None, "the backup was too quick for this test"
    done = stage.finish(running)
    stage.check(done, moment)
    stage.disks["vdc"] = bytearray(SIZE_BYTES)
    stage.write("vdc", 3, MIB)
    assert levels(stage.backup()) == {"vda": "incremental", "sda": "incremental", "vdc": "full"}


def test_snapshot_in_the_middle(stage: Stage) -> None:
    stage.backup()
    stage.write("vda", 4, 0, 8 * MIB)
    moment = stage.moment()
    running = stage.slow_backup()
    overlay = stage.directory / "overlay.qcow2"
    stage.virsh(
        *("snapshot-create-as", "busy", "--disk-only", "--no-metadata", "--atomic"),
        *("--diskspec", f"vda,file={overlay}", "--diskspec", "sda,snapshot=no"),
    )
    stage.write("vda", 9, 7 * MIB)
    stage.virsh("blockcommit", "busy", "vda", "--active", "--pivot", fails="error")
    assert running.process.poll() is None, "the backup was too quick for this test"
    done = stage.finish(running)
    stage.check(done, moment)
    assert levels(done) == {"vda": "incremental", "sda": "incremental"}
    stage.write("vda", 5, 3 * MIB)
    assert levels(stage.backup()) == {"vda": "incremental", "sda": "incremental"}
    stage.virsh("blockcommit", "busy", "vda", "--active", "--pivot", "--wait")
    stage.write("vda", 6, 4 * MIB)
    assert levels(stage.backup()) == {"vda": "incremental", "sda": "incremental"}


def test_snapshot_in_the_middle_of_a_backup_that_is_stopped(stage: Stage) -> None:
    stage.backup()
    stage.write("vda", 4, 0, 8 * MIB)
    running = stage.slow_backup()
    overlay = stage.directory / "overlay.qcow2"
    stage.virsh(
        *("snapshot-create-as", "busy", "--disk-only", "--no-metadata", "--atomic"),
        *("--diskspec", f"vda,file={overlay}", "--diskspec", "sda,snapshot=no"),
    )
    running.process.terminate()
    status, _out, _err = running.wait()
    assert status == 128 + 15
    stage.expect_nothing_left()
    stage.write("vda", 5, 3 * MIB)
    assert levels(stage.backup()) == {"vda": "incremental", "sda": "incremental"}


def test_detached_disk(stage: Stage) -> None:
    moment = stage.moment()
    running = stage.slow_backup()
    stage.virsh("detach-disk", "busy", "sda")
    wait_for(lambda: "'sda'" not in stage.machine.handle.live_xml(), "the end of the detaching")
    done = stage.finish(running)
    stage.check(done, moment)
    assert not [name for name in stage.machine.state()["nodes"] if name.startswith("libvirt-1-")]
    stage.virsh("attach-disk", "busy", stage.directory / "sda.qcow2", "sda", "--subdriver", "qcow2")
    stage.write("sda", 5, 3 * MIB)
    assert levels(stage.backup()) == {"vda": "incremental", "sda": "incremental"}


@pytest.mark.parametrize("abort", [False, True], ids=["finished", "undone"])
def test_disk_detached_while_vbackup_is_dead(stage: Stage, abort: bool) -> None:
    """libvirt forgets the disk, QEMU keeps its nodes for the job: who recovers that closes them."""
    first = stage.backup()
    stage.write("vda", 4, 0, 8 * MIB)
    stage.write("sda", 4, 0, 8 * MIB)
    moment = stage.moment()
    running = stage.slow_backup()
    running.process.kill()
    running.process.wait()
    stage.virsh("detach-disk", "busy", "sda")
    wait_for(lambda: "'sda'" not in stage.machine.handle.live_xml(), "the end of the detaching")
    left = [name for name in stage.machine.state()["nodes"] if name.startswith("libvirt-1-")]
    assert left, "the job was too quick for this test"
    if not abort:
        stage.hurry()
    options = ("-r", stage.repository, *(("--abort",) if abort else ()))
    done = stage.command("-c", stage.daemon.uri, "recover", "busy", *options)
    assert "Disk sda was detached during the interrupted backup." in done.stdout + done.stderr
    assert not [name for name in stage.machine.state()["nodes"] if name.startswith("libvirt-1-")]
    stage.expect_nothing_left()
    made = stage.command("-q", "list", "busy", "-r", stage.repository, "--json").document["backups"]
    assert len(made) == (1 if abort else 2)
    assert first["id"] in [one["id"] for one in made]
    if not abort:
        stage.check({**made[-1], "disks": [{"dev": "vda"}, {"dev": "sda"}]}, moment)
    stage.virsh("attach-disk", "busy", stage.directory / "sda.qcow2", "sda", "--subdriver", "qcow2")
    stage.write("sda", 5, 3 * MIB)
    assert levels(stage.backup()) == {"vda": "incremental", "sda": "incremental"}


def test_backup_into_another_repository_in_the_middle(stage: Stage) -> None:
    """vbackup's own jobs do not hinder each other: QEMU makes both copies, each of another moment."""
    here, there = stage.repository, stage.tmp_path / "there"
    stage.command("init", "-r", there)
    moment = stage.moment()
    running = stage.slow_backup()
    stage.write("vda", 4, 7 * MIB)
    stage.repository = there
    later = stage.moment()
    options = ("-r", there, "--json")
    document = stage.command("-c", stage.daemon.uri, "-q", "backup", "busy", *options).document
    assert running.process.poll() is None, "the backup was too quick for this test"
    stage.check(document, later)
    stage.repository = here
    stage.check(stage.finish(running), moment)
    assert set(levels(stage.backup()).values()) == {"incremental"}


def test_second_backup_where_locks_do_nothing_leaves_the_first_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network and FUSE filesystems: the second has the lock too. It used to undo the first."""
    moment = stage.moment()
    running = stage.slow_backup()
    before = stage.machine.state()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda _fd, _operation: None)
        for arguments in (("backup", "busy"), ("recover", "busy", "--abort", "--force"), ("forget", "busy")):
            refused = stage.command("-c", stage.daemon.uri, *arguments, "-r", stage.repository, status=8)
            assert f"is being made by process {running.process.pid} of this host; wait for it to end" in refused.stderr
    assert [one["id"] for one in stage.machine.execute("query-jobs")] == [one["id"] for one in before["jobs"]]
    stage.check(stage.finish(running), moment)
    assert set(levels(stage.backup()).values()) == {"incremental"}


def test_copy_made_in_the_middle_of_a_backup_leaves_the_original_alone(stage: Stage) -> None:
    stage.backup()
    stage.write("vda", 4, 0, 8 * MIB)
    moment = stage.moment()
    running = stage.slow_backup()
    here, copy, without = stage.repository, stage.tmp_path / "copy", stage.tmp_path / "without"
    subprocess.run(["cp", "-a", here, copy], check=True)
    shutil.copytree(here, without, ignore=shutil.ignore_patterns("*.partial"))
    for arguments in (("backup", "busy"), ("recover", "busy"), ("recover", "--all"), ("recover", "busy", "--dry-run")):
        refused = stage.command("-c", stage.daemon.uri, *arguments, "-r", copy, status=6)
        assert "is a copy: the repository was copied in the middle of that backup" in refused.stderr
    for arguments, repository in (
        (("backup", "busy"), without),
        (("forget", "busy"), without),
        (("forget", "busy"), copy),
    ):
        refused = stage.command("-c", stage.daemon.uri, *arguments, "-r", repository, status=8)
        assert "Another copy of repository" in refused.stderr
    stage.check(stage.finish(running), moment)
    bitmaps = stage.machine.bitmaps()
    adopted = stage.command("recover", "-r", copy, "--adopt", "--json").document
    assert len(adopted["discarded"]) == 1
    assert stage.machine.bitmaps() == bitmaps
    for repository, level in ((copy, "full"), (without, "incremental"), (here, "incremental"), (copy, "incremental")):
        stage.write("vda", 5 + len(stage.machine.bitmaps()), MIB)
        stage.repository = repository
        done = stage.backup()
        assert set(levels(done).values()) == {level}, (repository, done)


@pytest.mark.parametrize("how", ["destroy", "poweroff"])
def test_end_of_the_domain(stage: Stage, how: str) -> None:
    first = stage.backup()
    stage.write("vda", 4, 0, 8 * MIB)
    running = stage.slow_backup()
    if how == "destroy":
        stage.virsh("destroy", "busy", "--graceful")
    else:
        # The guest itself: S5 in the PM1a control register, whose place the firmware has chosen.
        # QEMU may be gone before it has answered, so that virsh's own status says nothing.
        argv = ["virsh", "-q", "-c", stage.daemon.uri, "qemu-monitor-command", "busy", "--hmp"]
        subprocess.run([*argv, "o /h 0x604 0x2000"], capture_output=True, check=False, timeout=60)
    status, _out, err = running.wait()
    assert (status, "Domain busy stopped while it was being backed up" in err) == (1, True)
    wait_for(lambda: not stage.machine.handle.is_active(), "the end of the domain")
    assert entries(stage.repository) == [first["id"], "domain.json", "lock"]
    stage.machine.handle.domain.create()
    stage.write("vda", 5, 3 * MIB)
    assert levels(stage.backup()) == {"vda": "incremental", "sda": "incremental"}
