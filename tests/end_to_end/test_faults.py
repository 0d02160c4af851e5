"""What fails leaves nothing behind, and the retry is the same command."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.chains import END_BYTES
from tests.lab import DiskSpec, Lab, Machine, References, compare
from vbackup.domain.passthrough import Passthrough

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> Machine:
    """Two disks with data."""
    specs = [DiskSpec(tmp_path / "vda.qcow2"), DiskSpec(tmp_path / "vdb.qcow2", dev="vdb")]
    machine = lab.boot("faults", specs)
    for spec in specs:
        machine.write(spec.dev, "write -P 1 0 4M")
    return machine


class Backups:
    """The command for one machine and repository."""

    def __init__(self, lab: Lab, command: Command, machine: Machine, repository: Path) -> None:
        self.lab, self.command, self.machine, self.repository = lab, command, machine, repository

    def __call__(self, *options: str, status: int = 0) -> Outcome:
        return self.command(
            "-c",
            self.lab.uri,
            "-q",
            "backup",
            self.machine.name,
            "-r",
            self.repository,
            "--json",
            *options,
            status=status,
        )

    def entries(self) -> list[str]:
        directory = self.repository / self.machine.handle.uuid
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.fixture
def backups(lab: Lab, command: Command, machine: Machine, repository: Path) -> Backups:
    return Backups(lab, command, machine, repository)


def break_target(monkeypatch: pytest.MonkeyPatch, dev: str, errno: int, kind: Any = Passthrough) -> None:
    """Put blkdebug under the target of disk ``dev``: its third write fails, in QEMU, in the middle of the job."""
    original = kind.execute

    def execute(monitor: Any, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        if command == "blockdev-add" and arguments["node-name"].endswith(f"-{dev}"):
            rules = [{"event": "pwritev", "iotype": "write", "errno": errno, "once": False, "state": 3}]
            states = [
                {"event": "pwritev", "state": 1, "new_state": 2},
                {"event": "pwritev", "state": 2, "new_state": 3},
            ]
            file = {"driver": "blkdebug", "image": arguments["file"], "inject-error": rules, "set-state": states}
            arguments = {**arguments, "file": file}
        return original(monitor, command, arguments, fd=fd)

    monkeypatch.setattr(kind, "execute", execute)


@pytest.mark.parametrize(("errno", "status", "said"), [(5, 7, "Input/output error"), (28, 7, "no space left")])
def test_one_of_two_disks_failing_undoes_both(
    backups: Backups, machine: Machine, tmp_path: Path, errno: int, status: int, said: str
) -> None:
    full = backups().document
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 2 1M 2M", "write -z 0 64k")
    before = machine.state()
    with pytest.MonkeyPatch.context() as patch:
        break_target(patch, "vdb", errno)
        failed = backups("--level", "incremental", status=status)
    assert "Disk vdb" in failed.stderr
    assert said in failed.stderr
    assert json.loads(failed.stdout)["status"] == status
    assert machine.state() == before
    assert backups.entries() == [full["id"], "domain.json", "lock"]

    references = References(tmp_path / "references")
    with pytest.MonkeyPatch.context() as patch, references.taken(patch):
        again = backups("--level", "incremental").document
    assert {disk["copied_bytes"] for disk in again["disks"]} == {(2 << 20) + 65536 + END_BYTES}
    images = references.finish(machine)
    backups.command("-q", "restore", machine.name, "-r", backups.repository, "--output", tmp_path / "out")
    for disk in again["disks"]:
        compare(tmp_path / "out" / disk["file"], images[disk["node_name"]])


def test_full_filesystem_undoes_both_and_room_makes_it_work(
    lab: Lab, command: Command, machine: Machine, small_filesystem: Path
) -> None:
    command("init", "-r", small_filesystem / "repository")
    backups = Backups(lab, command, machine, small_filesystem / "repository")
    full = backups().document
    machine.write("vda", "write -P 3 0 1M")
    machine.write("vdb", "write -P 3 0 16M")
    before = machine.state()
    failed = backups(status=7)
    assert "no space left" in failed.stderr
    assert machine.state() == before
    assert machine.execute("query-status")["status"] == "running"
    assert backups.entries() == [full["id"], "domain.json", "lock"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_filesystem)], check=True)
    again = backups().document
    assert [disk["copied_bytes"] for disk in again["disks"]] == [(1 << 20) + END_BYTES, (16 << 20) + END_BYTES]


def test_restore_onto_a_full_filesystem_leaves_nothing(
    backups: Backups, machine: Machine, small_filesystem: Path, command: Command
) -> None:
    machine.write("vdb", "write -P 3 0 16M")
    backups()
    (small_filesystem / "mine").write_text("keep")
    failed = command("-q", "restore", machine.name, "-r", backups.repository, "--output", small_filesystem, status=7)
    assert "no space left" in failed.stderr
    assert [path.name for path in small_filesystem.iterdir()] == ["mine"]


def test_read_only_repository_is_told(lab: Lab, command: Command, machine: Machine, small_filesystem: Path) -> None:
    command("init", "-r", small_filesystem / "repository")
    subprocess.run(["mount", "-o", "remount,ro", str(small_filesystem)], check=True)
    before = machine.state()
    refused = Backups(lab, command, machine, small_filesystem / "repository")(status=7)
    assert "read-only" in refused.stderr.lower()
    assert machine.state() == before


def test_dry_run_has_qemu_check_everything_and_keeps_nothing(
    backups: Backups, machine: Machine, lab: Lab, command: Command
) -> None:
    before = machine.state()
    plan = backups("--dry-run").document
    assert plan["schema"] == "vbackup.plan/1"
    assert plan["level"] == "full"
    assert [action["type"] for action in plan["transaction"]] == [
        "block-dirty-bitmap-add",
        "block-dirty-bitmap-merge",
        "block-dirty-bitmap-add",
        "blockdev-backup",
    ] * 2
    assert machine.state() == before
    assert backups.entries() == []

    full = backups().document
    before = machine.state()
    plan = backups("--dry-run").document
    assert [disk["base"] for disk in plan["disks"]] == [full["id"]] * 2
    assert [action["type"] for action in plan["transaction"][:4]] == [
        "block-dirty-bitmap-add",
        "block-dirty-bitmap-add",
        "block-dirty-bitmap-merge",
        "blockdev-backup",
    ]
    assert machine.state() == before
    assert backups.entries() == [full["id"], "domain.json", "lock"]
    text = command("-c", lab.uri, "-q", "backup", machine.name, "-r", backups.repository, "--dry-run")
    assert "checked by QEMU; nothing was kept" in text.stdout


def test_dry_run_finds_what_only_qemu_knows(
    backups: Backups, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbackup.qemu import qemu_img

    create = qemu_img.create
    monkeypatch.setattr(qemu_img, "create", lambda path, size_bytes, **rest: create(path, size_bytes - 65536, **rest))
    before = machine.state()
    refused = backups("--dry-run", status=1)
    assert "QEMU refused transaction" in refused.stderr
    assert machine.state() == before


def test_copy_touches_no_bitmap_and_no_chain(backups: Backups, machine: Machine) -> None:
    full = backups().document
    machine.write("vda", "write -P 9 0 64k")
    before = machine.bitmaps()
    copy = backups("--level", "copy").document
    assert machine.bitmaps() == before
    assert copy["parent"] is None
    after = backups().document
    assert (after["parent"], after["disks"][0]["copied_bytes"]) == (full["id"], 65536 + END_BYTES)


@pytest.mark.parametrize("compression", ["zstd", "zlib"])
def test_compressed_chain_is_exact(
    backups: Backups, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    for step in range(2):
        machine.write("vda", f"write -P {step + 5} {step}M 1M", "write -z 3M 512k")
        references = References(tmp_path / f"references{step}")
        with references.taken(monkeypatch):
            done = backups("--compress", compression).document
        images = references.finish(machine)
        output = tmp_path / f"out{step}"
        backups.command("-q", "restore", machine.name, "-r", backups.repository, "--output", output, "--format", "raw")
        for disk in done["disks"]:
            compare(output / f"{disk['dev']}.raw", images[disk["node_name"]])
        image = backups.repository / machine.handle.uuid / done["id"] / "vda.qcow2"
        said = subprocess.run(["qemu-img", "info", str(image)], capture_output=True, text=True, check=True).stdout
        assert f"compression type: {compression}" in said


def test_required_quiesce_without_an_agent_fails_and_touches_nothing(backups: Backups, machine: Machine) -> None:
    before = machine.state()
    refused = backups("--quiesce", "required", status=5)
    assert "no guest agent is connected" in refused.stderr
    assert machine.state() == before
    assert backups.entries() == []


def test_speed_is_qemus_limit(backups: Backups, machine: Machine) -> None:
    plan = backups("--dry-run", "--speed", "1.5MiB/s").document
    speeds = [action["data"].get("speed") for action in plan["transaction"] if action["type"] == "blockdev-backup"]
    assert speeds == [1572864, 1572864]


def test_unknown_domain(lab: Lab, command: Command, repository: Path) -> None:
    refused = command("-c", lab.uri, "backup", "nobody", "-r", repository, status=4)
    listing = f"virsh -c {shlex.quote(lab.uri)} list --all"
    assert refused.stderr == f"vbackup: No domain 'nobody' at {lab.uri}; '{listing}' lists all domains.\n"


def test_libvirt_that_is_not_there(command: Command, repository: Path) -> None:
    refused = command("-c", "test+unix:///nothing?socket=/nonexistent", "backup", "x", "-r", repository, status=4)
    assert "Cannot reach libvirt" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
