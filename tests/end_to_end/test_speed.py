"""The speed of a running backup: changed by another vbackup, or by how long the guest waits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemon import Daemon, wait_for
from tests.lab import HEEDING_SIGNALS, DiskSpec, Lab, Machine
from vbackup.qemu import jobs

if TYPE_CHECKING:
    from tests.conftest import Command

MIB = 1024 * 1024


@pytest.fixture
def machine(slow_machine: Callable[[str], Machine]) -> Machine:
    return slow_machine("speed")


def speeds(machine: Machine) -> set[int | None]:
    return set(jobs.speeds(machine.monitor).values())


def test_running_backup_is_made_slower_and_faster(
    daemon: Daemon, machine: Machine, repository: Path, command: Command
) -> None:
    argv = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup", "-c", daemon.uri, "-q", "backup", machine.name]
    with subprocess.Popen([*argv, "-r", os.fspath(repository), "--speed", "64k"]) as running:
        wait_for(lambda: speeds(machine) == {64 * 1024}, "the start of the jobs")
        done = command("-c", daemon.uri, "speed", machine.name, "32k", "--disk", "vdb", "--json").document
        assert done["schema"] == "vbackup.speed/1"
        assert done["domain"]["name"] == machine.name
        assert done["speed_bytes_s"] == 32 * 1024
        assert [(one["dev"], one["speed_before_bytes_s"]) for one in done["jobs"]] == [("vdb", 64 * 1024)]
        assert speeds(machine) == {64 * 1024, 32 * 1024}

        told = command("-c", daemon.uri, "speed", "--domain", machine.name, "unlimited", "-r", repository).stdout
        assert "32.0 KiB/s" in told
        assert told.count("unlimited") == 2
        assert running.wait(timeout=60) == 0
    again = command("-c", daemon.uri, "speed", machine.name, "1M", status=4)
    assert "No backup of domain speed is running" in again.stderr


def test_there_must_be_something_to_change(
    daemon: Daemon, machine: Machine, repository: Path, command: Command
) -> None:
    assert "No rate given" in command("-c", daemon.uri, "speed", machine.name, status=2).stderr
    assert "nor 'unlimited'" in command("-c", daemon.uri, "speed", machine.name, "fast", status=2).stderr
    assert "No domain" in command("-c", daemon.uri, "speed", "no-such", "1M", status=4).stderr
    command("-c", daemon.uri, "speed", machine.name, "1M", "-r", repository, status=4)


def test_guest_that_waits_makes_its_backup_slower(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    """A throttled disk: each of the guest's requests takes its time, whatever the backup does."""
    throttle = "<iotune><total_iops_sec>6</total_iops_sec></iotune>"
    specs = [
        DiskSpec(tmp_path / "vda.qcow2", size="16M"),
        DiskSpec(tmp_path / "vdb.qcow2", dev="vdb", size="8M", inside=throttle),
    ]
    machine = lab.boot("latency", specs)
    machine.write("vda", "write -P 1 0 12M")
    seen: set[int | None] = set()
    ended = threading.Event()

    def guest() -> None:
        """More requests than may pass: they take longer and longer."""
        qdev = machine.qdev("vdb")
        while not ended.wait(1 / 20):
            machine.execute("human-monitor-command", command_line=f'qemu-io -d {qdev} "aio_write -q -P 2 0 4k"')
            seen.update(speeds(machine))

    writer = threading.Thread(target=guest)
    writer.start()
    try:
        slow = ("--speed", "4M", "--max-latency", "50ms")
        done = command("-c", lab.uri, "backup", machine.name, "-r", repository, "--disk", "vda", *slow)
    finally:
        ended.set()
        writer.join()
    assert "more than 50 ms: copying more slowly" in done.stderr
    assert 4 * MIB in seen
    assert len(seen - {None}) > 1
    assert min(one for one in seen if one) >= MIB
