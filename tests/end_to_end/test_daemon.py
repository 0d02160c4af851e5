"""Over a libvirtd: QEMU without privileges, storage pools, descriptors or paths, a daemon that restarts, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import Daemon, wait_for
from tests.end_to_end.chains import END_BYTES
from tests.lab import HEEDING_SIGNALS, DiskSpec, Machine, compare, domain_xml
from vbackup.domain import host
from vbackup.qemu import qemu_img

if TYPE_CHECKING:
    from tests.conftest import Command

SLOW = ("--speed", "2M")


@pytest.fixture
def machine(slow_machine: Callable[[str], Machine]) -> Machine:
    return slow_machine("daemon")


class Running:
    """A vbackup in a separate process."""

    def __init__(self, *arguments: str | Path) -> None:
        argv = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup", *map(str, arguments)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self, *, timeout_s: float = 60.0) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout_s)
        assert "Traceback" not in err
        return self.process.returncode, out, err

    def wait_for_progress(self, machine: Machine) -> None:
        """Until its jobs copy."""
        wait_for(
            lambda: (
                self.process.poll() is not None
                or any(0 < job["current-progress"] < job["total-progress"] for job in machine.execute("query-jobs"))
            ),
            "the start of the jobs",
        )
        assert self.process.poll() is None, self.wait()


def start_slow_backup(machine: Machine, daemon: Daemon, repository: Path, *options: str) -> Running:
    running = Running("-c", daemon.uri, "backup", machine.name, "-r", repository, "--json", *SLOW, *options)
    running.wait_for_progress(machine)
    return running


def entries(repository: Path) -> list[str]:
    """What is in the repository's domain directories."""
    return sorted(path.name for directory in repository.iterdir() if directory.is_dir() for path in directory.iterdir())


def test_unprivileged_qemu_writes_into_a_closed_repository(
    machine: Machine, daemon: Daemon, command: Command, repository: Path, tmp_path: Path
) -> None:
    assert repository.stat().st_mode & 0o777 == 0o700
    qemu = subprocess.run(["pgrep", "-u", "libvirt-qemu", "-f", "guest=daemon"], capture_output=True, check=False)
    assert qemu.stdout, "QEMU should run as libvirt-qemu here"
    done = command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    assert done["level"] == "full"
    directory = repository / done["domain"]["uuid"] / done["id"]
    for path in directory.iterdir():
        assert path.stat().st_uid == 0
        assert path.stat().st_mode & 0o777 == 0o600
    command("-q", "restore", machine.name, "-r", repository, "--output", tmp_path / "out", "--format", "raw")
    assert (tmp_path / "out" / "vda.raw").read_bytes() == b"\1" * (16 << 20) + bytes(48 << 20)


def test_without_descriptors_qemu_is_refused_by_path_with_a_clear_error(
    machine: Machine, daemon: Daemon, command: Command, repository: Path
) -> None:
    before = machine.state()
    refused = command("-c", daemon.tcp_uri, "-q", "backup", machine.name, "-r", repository, status=7)
    assert "QEMU may not write" in refused.stderr
    assert "this connection cannot carry file descriptors" in refused.stderr
    closed = next(path for path in reversed(repository.parents) if not path.stat().st_mode & 0o001)
    assert f"runs as user libvirt-qemu, who may not enter the directory {closed} (owner root" in refused.stderr
    assert machine.state() == before
    assert entries(repository) == []


def test_without_descriptors_an_open_repository_is_written_by_path(
    machine: Machine, daemon: Daemon, command: Command, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What another host's storage would be: root of both hosts and QEMU reach it. Here QEMU is let in by
    # giving it each image before it opens it.
    create = qemu_img.create

    def create_open(path: Path, size_bytes: int, **options: object) -> None:
        create(path, size_bytes, **options)  # type: ignore[arg-type]
        path.chmod(0o666)
        path.parent.chmod(0o755)

    repository = images / "repository"
    command("init", "-r", repository)
    repository.chmod(0o755)
    (repository / machine.handle.uuid).mkdir(mode=0o755)
    monkeypatch.setattr(qemu_img, "create", create_open)
    done = command("-c", daemon.tcp_uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    assert done["level"] == "full"
    command("-q", "restore", machine.name, "-r", repository, "--output", tmp_path / "out", "--format", "raw")
    assert (tmp_path / "out" / "vdb.raw").read_bytes()[: 16 << 20] == b"\1" * (16 << 20)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_unwinds_in_seconds(
    machine: Machine, daemon: Daemon, command: Command, repository: Path, signum: signal.Signals
) -> None:
    full = command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 2 0 16M")
    before = machine.state()
    running = start_slow_backup(machine, daemon, repository)
    asked = time.monotonic()
    running.process.send_signal(signum)
    status, out, err = running.wait()
    assert time.monotonic() - asked < 5
    assert status == 128 + signum
    assert f"Stopped by {signum.name}" in err
    assert json.loads(out)["status"] == 128 + signum
    assert machine.state() == before
    assert entries(repository) == [full["id"], "domain.json", "lock"]
    again = command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    assert [disk["level"] for disk in again["disks"]] == ["incremental", "incremental"]
    assert {disk["copied_bytes"] for disk in again["disks"]} == {(16 << 20) + END_BYTES}


def test_killed_run_is_finished_by_the_next(
    machine: Machine, daemon: Daemon, command: Command, repository: Path
) -> None:
    command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository)
    before = machine.state()
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 2 0 16M")
    running = start_slow_backup(machine, daemon, repository)
    running.process.kill()
    running.wait()
    for job in machine.execute("query-jobs"):
        machine.execute("block-job-set-speed", device=job["id"], speed=0)
    again = command("-c", daemon.uri, "backup", machine.name, "-r", repository, "--json")
    assert "which was interrupted: its jobs survived in QEMU" in again.stderr
    assert {disk["copied_bytes"] for disk in again.document["disks"]} == {END_BYTES}
    listed = command("list", "-r", repository, "--json").document["backups"]
    assert [one["level"] for one in listed] == ["full", "incremental", "incremental"]
    assert again.document["parent"] == listed[1]["id"]
    check_only_bitmaps_changed(machine, before)
    assert not [name for name in entries(repository) if name.endswith(".partial")]


def test_killed_run_is_undone_on_request(machine: Machine, daemon: Daemon, command: Command, repository: Path) -> None:
    command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository)
    before = machine.state()
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 2 0 16M")
    running = start_slow_backup(machine, daemon, repository)
    refused = command("-c", daemon.uri, "recover", machine.name, "-r", repository, status=8)
    assert "Another vbackup is working" in refused.stderr
    running.process.kill()
    running.wait()
    planned = command("-c", daemon.uri, "recover", "--all", "--dry-run", "-r", repository)
    assert "would be finished: its jobs survived in QEMU" in planned.stdout
    done = command("-c", daemon.uri, "recover", machine.name, "--abort", "-r", repository, "--json").document
    assert [(one["remedy"], one["reason"]) for one in done["backups"]] == [("undo", "asked for")]
    assert machine.state() == before
    assert not [name for name in entries(repository) if name.endswith(".partial")]
    nothing = command("-c", daemon.uri, "recover", machine.name, "-r", repository)
    assert nothing.stdout == "No unfinished backups.\n"
    again = command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    assert {disk["copied_bytes"] for disk in again["disks"]} == {(16 << 20) + END_BYTES}


def check_only_bitmaps_changed(machine: Machine, before: dict[str, Any]) -> None:
    after = machine.state()
    assert (after["nodes"], after["jobs"], after["fdsets"]) == (before["nodes"], [], [])
    assert {len(names) for names in after["bitmaps"].values()} == {3}  # two checkpoints, the end mark


def test_second_backup_at_once_is_refused(machine: Machine, daemon: Daemon, command: Command, repository: Path) -> None:
    running = start_slow_backup(machine, daemon, repository)
    refused = command("-c", daemon.uri, "backup", machine.name, "-r", repository, status=8)
    assert "Another vbackup is working" in refused.stderr
    running.process.terminate()
    assert running.wait()[0] == 128 + signal.SIGTERM
    command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository)


def test_second_backup_waits_for_the_first_if_it_is_told_to(
    machine: Machine, daemon: Daemon, command: Command, repository: Path
) -> None:
    running = start_slow_backup(machine, daemon, repository)
    argv = ("-c", daemon.uri, "backup", machine.name, "-r", repository, "--wait-lock", "60")
    waiting, impatient = Running(*argv, "--json"), Running(*argv)
    for one in (waiting, impatient):
        assert one.process.stderr is not None
        assert "waiting up to 60 s for it to end" in one.process.stderr.readline()
    asked = time.monotonic()
    impatient.process.terminate()
    assert impatient.wait()[0] == 128 + signal.SIGTERM
    assert time.monotonic() - asked < 5
    running.process.kill()  # a lock of the dead is no lock, and its full is finished by whoever waited
    running.wait()
    for job in machine.execute("query-jobs"):
        machine.execute("block-job-set-speed", device=job["id"], speed=0)
    status, out, err = waiting.wait()
    assert status == 0, err
    assert "which was interrupted: its jobs survived in QEMU" in err
    assert json.loads(out)["level"] == "incremental"


def test_backup_goes_on_over_a_restart_of_libvirtd(
    machine: Machine, daemon: Daemon, command: Command, repository: Path, tmp_path: Path
) -> None:
    running = start_slow_backup(machine, daemon, repository, "--speed", "12M")
    daemon.kill()
    daemon.restart()
    status, out, err = running.wait()
    assert status == 0, err
    assert json.loads(out)["level"] == "full"
    daemon.host.reopen()
    fresh = Machine(daemon.host.domain("daemon"))
    state = fresh.state()
    assert (state["jobs"], state["fdsets"]) == ([], [])
    assert not [name for name in state["nodes"] if name.startswith("vbackup-")]
    command("-q", "restore", "daemon", "-r", repository, "--output", tmp_path / "out", "--format", "raw")
    assert (tmp_path / "out" / "vdb.raw").read_bytes()[: 16 << 20] == b"\1" * (16 << 20)


@pytest.mark.parametrize("options", [("--parallel", "3"), ("--group",)])
def test_several_backups_go_on_over_a_restart_of_libvirtd(
    machine: Machine,
    daemon: Daemon,
    images: Path,
    command: Command,
    repository: Path,
    tmp_path: Path,
    options: list[str],
) -> None:
    """Each has a separate connection, and so none closes what another one uses."""
    for name in ("one", "two"):
        spec = DiskSpec(images / f"{name}.qcow2")
        spec.create()
        daemon.start(domain_xml(name, [spec.xml()])).write("vda", "write -P 1 0 16M")
    arguments = ("backup", "--all", "-r", repository, "--json", "--speed", "12M", *options)
    running = Running("-c", daemon.uri, *arguments)
    for name in ("daemon", "one", "two"):
        running.wait_for_progress(Machine(daemon.host.domain(name)))
    daemon.kill()
    daemon.restart()
    status, out, err = running.wait()
    assert status == 0, err
    assert [one["backup"]["level"] for one in json.loads(out)["domains"]] == ["full"] * 3
    daemon.host.reopen()
    for name in ("daemon", "one", "two"):
        fresh = Machine(daemon.host.domain(name))
        state = fresh.state()
        assert (state["jobs"], state["fdsets"]) == ([], [])
        assert not [node for node in state["nodes"] if node.startswith("vbackup-")]
        command("-q", "restore", name, "-r", repository, "--output", tmp_path / name, "--format", "raw")
        assert (tmp_path / name / "vda.raw").read_bytes()[: 16 << 20] == b"\1" * (16 << 20)


def test_libvirtd_that_stays_away_fails_the_backup_and_the_next_one_works(
    machine: Machine, daemon: Daemon, command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process, so that its patience can be shortened.
    monkeypatch.setattr(host, "RECONNECT_S", 0.5)

    def kill_when_copying() -> None:
        watcher = host.Host(daemon.uri)
        other = Machine(watcher.domain("daemon"))
        wait_for(lambda: bool(other.execute("query-jobs")), "the start of the jobs")
        daemon.kill()

    killer = threading.Thread(target=kill_when_copying)
    killer.start()
    lost = command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository, *SLOW, status=4)
    killer.join()
    assert "Cannot reach libvirt" in lost.stderr
    assert entries(repository) == []
    daemon.restart()
    daemon.host.reopen()
    done = command("-c", daemon.uri, "-q", "backup", "daemon", "-r", repository, "--json").document
    assert done["level"] == "full"
    state = Machine(daemon.host.domain("daemon")).state()
    assert (state["jobs"], state["fdsets"]) == ([], [])
    assert {len(names) for names in state["bitmaps"].values()} == {2}  # the checkpoint, the end mark


def test_virtlogd_that_is_gone_is_not_missed(
    machine: Machine, daemon: Daemon, command: Command, repository: Path, tmp_path: Path
) -> None:
    before = machine.state()
    running = start_slow_backup(machine, daemon, repository)
    with daemon.without_virtlogd():
        with pytest.raises(libvirt.libvirtError, match="virtlogd-sock"):
            daemon.start(domain_xml("another", []))
        for job in machine.execute("query-jobs"):
            machine.execute("block-job-set-speed", device=job["id"], speed=0)
        status, out, err = running.wait()
        assert status == 0, err
        assert json.loads(out)["level"] == "full"
        machine.write("vda", "write -P 2 1M 64k")
        done = command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
        assert [(disk["level"], disk["copied_bytes"]) for disk in done["disks"]] == [
            ("incremental", 65536 + END_BYTES),
            ("incremental", END_BYTES),
        ]
        command("-q", "restore", machine.name, "-r", repository, "--output", tmp_path / "out", "--format", "raw")
    expected = b"\1" * (1 << 20) + b"\2" * 65536 + b"\1" * ((15 << 20) - 65536)
    assert (tmp_path / "out" / "vda.raw").read_bytes()[: 16 << 20] == expected
    check_only_bitmaps_changed(machine, before)


def test_domain_destroyed_in_the_middle(
    machine: Machine, daemon: Daemon, command: Command, repository: Path, images: Path
) -> None:
    full = command("-c", daemon.uri, "-q", "backup", machine.name, "-r", repository, "--json").document
    for dev in ("vda", "vdb"):
        machine.write(dev, "write -P 2 0 16M")
    running = start_slow_backup(machine, daemon, repository)
    machine.handle.domain.destroy()
    status, _out, err = running.wait()
    assert status == 1
    assert "Domain daemon stopped while it was being backed up" in err
    assert entries(repository) == [full["id"], "domain.json", "lock"]
    again = daemon.start(
        domain_xml(
            "daemon",
            [DiskSpec(images / f"{dev}.qcow2", dev=dev).xml() for dev in ("vda", "vdb")],
            top=f"<uuid>{full['domain']['uuid']}</uuid>",
        )
    )
    done = command("-c", daemon.uri, "-q", "backup", "daemon", "-r", repository, "--json").document
    # The base's bitmap was saved when QEMU ended, with all that was written; the failed backup's own are gone.
    assert {disk["level"] for disk in done["disks"]} == {"incremental"}
    assert {disk["copied_bytes"] for disk in done["disks"]} == {(16 << 20) + END_BYTES}
    assert {len(names) for names in again.bitmaps().values()} == {3}


def test_volume_of_a_pool(daemon: Daemon, command: Command, repository: Path, images: Path, tmp_path: Path) -> None:
    pool = daemon.host.connection.storagePoolCreateXML(
        f"<pool type='dir'><name>vbackup-test</name><target><path>{images}</path></target></pool>"
    )
    pool.createXML(
        "<volume><name>v.qcow2</name><capacity unit='M'>16</capacity><target><format type='qcow2'/></target></volume>"
    )
    disk = (
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source pool='vbackup-test' volume='v.qcow2'/><target dev='vda' bus='virtio'/></disk>"
    )
    machine = daemon.start(domain_xml("volume", [disk]))
    machine.write("vda", "write -P 7 1M 1M")
    done = command("-c", daemon.uri, "-q", "backup", "volume", "-r", repository, "--json").document
    assert done["disks"][0]["dev"] == "vda"
    machine.write("vda", "write -P 8 1M 64k")
    second = command("-c", daemon.uri, "-q", "backup", "volume", "-r", repository, "--json").document
    assert second["disks"][0]["copied_bytes"] == 65536 + END_BYTES
    machine.handle.domain.destroy()
    command("-q", "restore", "volume", "-r", repository, "--output", tmp_path / "out")
    compare(tmp_path / "out" / "vda.qcow2", images / "v.qcow2")
