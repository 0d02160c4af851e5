"""QEMU says nothing when the last of an image does not reach the disk: vbackup has to find out by itself.

The job has concluded without an error, blockdev-del answers {}; only then the qcow2 driver writes what its
caches still hold, and an error of that goes to QEMU's stderr alone. Full and failing storage does it: NFS,
thin pools and btrfs find at the flush that there is no room.
"""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.conftest import Bench, backup, failing_at_the_end, plain_file
from tests.lab import DiskSpec, Lab
from vbackup.domain.passthrough import Passthrough

if TYPE_CHECKING:
    from tests.conftest import Command


def copied(bench: Bench, path: Path) -> dict[str, Any]:
    """A job has copied data into node target, and has concluded without an error; returns the node's options."""
    bench.node("one")
    bench.write("one", 0, 1024 * 1024)
    options = bench.machine.open_forgetful("target", str(path), errno.ENOSPC)
    bench.transaction(backup("j", "one", "target"))
    bench.wait("j", "pending")
    bench.execute("job-finalize", id="j")
    assert "error" not in bench.wait("j", "concluded")
    bench.execute("job-dismiss", id="j")
    return options


def test_closing_tells_nothing(bench: Bench) -> None:
    """The day QEMU tells, this fails, and vbackup may ask less."""
    path = bench.image()
    copied(bench, path)
    assert bench.execute("blockdev-del", node_name="target") == {}
    assert not holds_data(path)


def test_reopening_tells(bench: Bench) -> None:
    """With the very options of blockdev-add it changes nothing, but QEMU flushes first."""
    bench.open("good", str(bench.image()))
    good = {"driver": "qcow2", "node-name": "good", "file": plain_file(bench.nodes()["good"]["file"])}
    assert bench.execute("blockdev-reopen", options=[good]) == {}
    error = bench.refused("blockdev-reopen", options=[copied(bench, bench.image())])
    assert "flush" in error.description
    assert "No space left on device" in error.description


def holds_data(path: Path) -> bool:
    done = subprocess.run(["qemu-img", "map", "--output=json", str(path)], capture_output=True, check=True)
    return any(extent["data"] for extent in json.loads(done.stdout))


def test_backup_whose_image_did_not_reach_the_disk_is_none(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = lab.boot("flush", [DiskSpec(tmp_path / "vda.qcow2", size="16M")])
    machine.write("vda", "write -P 7 0 1M")
    execute = Passthrough.execute

    def execute_with_failing_storage(
        monitor: Passthrough, name: str, arguments: Any = None, *, fd: int | None = None
    ) -> Any:
        if name == "blockdev-add" and arguments["driver"] == "qcow2":
            arguments = {**arguments, "file": failing_at_the_end(arguments["file"], errno.ENOSPC)}
        return execute(monitor, name, arguments, fd=fd)

    run = ("-c", lab.uri, "backup", "flush", "-r", repository)
    with monkeypatch.context() as patch:
        patch.setattr(Passthrough, "execute", execute_with_failing_storage)
        outcome = command(*run, status=None)
    backups = command("list", "-r", repository, "--json").document["backups"]
    command(*run)
    lab.remove(machine)
    assert backups == [], "an image that holds nothing was committed as a backup"
    assert outcome.status == 7
    assert "no space left" in outcome.stderr.lower()
