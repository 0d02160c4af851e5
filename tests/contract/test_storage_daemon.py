"""What vbackup relies on in a real qemu-storage-daemon: its start and its end, in every way, and its secrets."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import wait_for
from tests.lab import create_luks
from tests.unit.builders import Recorder
from vbackup import names
from vbackup.domain.offline import open_images
from vbackup.engine import scratch
from vbackup.errors import (
    BusyError,
    ConnectionLostError,
    DiskError,
    FdsNotPassedError,
    LinkLostError,
    QmpError,
    StorageDaemonGoneError,
    UnsuitableError,
)
from vbackup.images import targets
from vbackup.model import BlockDriver, Disk, ImageLocation, SecretRef, SourceType
from vbackup.names import Naming
from vbackup.qemu import backing_chain, jobs, qmp_socket, storage_daemon
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.qmp_socket import Socket
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.repository import readers
from vbackup.stop import Stop
from vbackup.undo import Undo

MIB = 1024 * 1024
PASSPHRASE = "pässwörd, with = and spaces "
SECRET = SecretRef(uuid="5ec4e700-0000-4000-8000-000000000001")
REPOSITORY = "0123456789ab"


def create(path: Path, *options: str, image_format: str = "qcow2", size: str = "4M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *options, str(path), size], check=True)
    return path


def bitmaps(path: Path) -> dict[str, list[str]]:
    """What the image has stored, by name, with the flags."""
    argv = ["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)]
    data = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)["format-specific"]["data"]
    return {one["name"]: one["flags"] for one in data.get("bitmaps", [])}


def add_bitmap(monitor: Any, node: str, name: str = "b") -> None:
    monitor.execute("block-dirty-bitmap-add", {"node": node, "name": name, "persistent": True})


def is_running(pid: int) -> bool:
    """False also for a process that has ended and is waited for by nobody yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends between open(2) and read(2)
        return False


def write_outside(path: Path) -> int:
    """Whether another program may write the image: qemu-io's exit status."""
    return subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", str(path)], capture_output=True, check=False
    ).returncode


# the ordinary way


def test_bitmaps_are_stored_at_the_end_and_the_images_let_go(tmp_path: Path) -> None:
    path = create(tmp_path / "vda.qcow2")
    recorder = Recorder()
    with open_images([("vda", str(path), BlockDriver.QCOW2)], reporter=recorder) as opened:
        (node,) = opened.disk_nodes()
        assert (node.top.driver, node.top.read_only, node.keeps_bitmaps) == (BlockDriver.QCOW2, False, True)
        add_bitmap(opened.monitor, node.top.node_name)
        assert list(opened.disk_nodes()[0].top.bitmaps) == ["b"]
        assert write_outside(path) != 0
    assert bitmaps(path) == {"b": ["auto"]}
    assert write_outside(path) == 0
    assert recorder.warnings == []


def opened(daemon: StorageDaemon, path: Path) -> str:
    """Open an image as a disk; return its node."""
    image = Image(str(path), BlockDriver.QCOW2, is_block_device=False, identity=(0, path.stat().st_ino))
    daemon.open("disk", [image], secret_value=lambda _: b"")
    (node,) = daemon.chains["disk"]
    return node


def test_bitmap_is_in_the_image_once_it_is_stored_even_if_the_daemon_is_killed(tmp_path: Path) -> None:
    image = create(tmp_path / "a.qcow2")
    with StorageDaemon(Recorder()) as daemon:
        node = opened(daemon, image)
        add_bitmap(daemon, node, "early")
        daemon.store(node)
        add_bitmap(daemon, node, "late")
        os.kill(daemon.pid, signal.SIGKILL)
    assert bitmaps(image) == {"early": ["in-use", "auto"]}


def test_disk_that_is_closed_is_left_to_others(tmp_path: Path) -> None:
    image = create(tmp_path / "a.qcow2")
    with StorageDaemon(Recorder()) as daemon:
        add_bitmap(daemon, opened(daemon, image))
        assert write_outside(image) != 0
        daemon.close("disk")
        assert write_outside(image) == 0
        assert bitmaps(image) == {"b": ["auto"]}
        assert daemon.chains == {}
        opened(daemon, image)


def test_daemon_has_ended_after_the_block_and_left_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with StorageDaemon(Recorder()) as daemon:
        pid = daemon.pid
        assert is_running(pid)
        assert list(tmp_path.iterdir()) == []
    assert not is_running(pid)
    assert list(tmp_path.iterdir()) == []


def test_chain_is_opened_down_to_its_end_and_only_its_top_for_writing(tmp_path: Path) -> None:
    base = create(tmp_path / "base.raw", image_format="raw")
    middle = create(tmp_path / "middle.qcow2", "-b", str(base), "-F", "raw")
    subprocess.run(["qemu-img", "bitmap", "--add", str(middle), "b"], check=True)
    top = create(tmp_path / "top.qcow2", "-b", "middle.qcow2", "-F", "qcow2")
    with open_images([("vda", str(top), BlockDriver.QCOW2)], reporter=Recorder()) as opened:
        (node,) = opened.disk_nodes()
        assert [(layer.driver.name, layer.read_only, list(layer.bitmaps)) for layer in node.layers] == [
            ("qcow2", False, []),
            ("qcow2", True, ["b"]),
            ("raw", True, []),
        ]
        # Others may read what is below, and nobody may write it.
        assert subprocess.run(["qemu-img", "info", str(middle)], capture_output=True, check=False).returncode == 0
        assert write_outside(middle) != 0


def test_raw_image_is_locked_while_its_job_runs(tmp_path: Path) -> None:
    path = create(tmp_path / "vda.raw", image_format="raw")
    to = create(tmp_path / "target.qcow2")
    write = ["qemu-io", "-f", "raw", "-c", "write 0 64k", str(path)]
    with open_images([("vda", str(path), BlockDriver.RAW)], reporter=Recorder()) as opened, Undo(Recorder()) as undo:
        (node,) = opened.disk_nodes()
        assert not node.bears_checkpoints
        targets.open_in_qemu(opened.monitor, [targets.Target(to, "to")], undo=undo)
        data = {"job-id": "j", "device": node.top.node_name, "target": "to", "sync": "full", "speed": 65536}
        undo.push("end the job", lambda: jobs.cancel(opened.monitor, ["j"]))
        opened.monitor.execute("transaction", {"actions": [{"type": "blockdev-backup", "data": data}]})
        refused = subprocess.run(write, capture_output=True, text=True, check=False)
        assert (refused.returncode, "lock" in refused.stderr) == (1, True)
    assert subprocess.run(write, capture_output=True, check=False).returncode == 0


def test_image_that_another_program_writes_is_busy(tmp_path: Path) -> None:
    path = create(tmp_path / "vda.qcow2")
    with open_images([("vda", str(path), BlockDriver.QCOW2)], reporter=Recorder()):
        with (
            pytest.raises(BusyError, match=str(path)),
            open_images([("vdb", str(path), BlockDriver.QCOW2)], reporter=Recorder()),
        ):
            pass
        assert is_running(os.getpid())


def test_image_that_cannot_be_opened_ends_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "vda.qcow2"
    path.write_bytes(bytes(MIB))
    with (
        pytest.raises(DiskError, match=r"vda\.qcow2"),
        open_images([("vda", str(path), BlockDriver.QCOW2)], reporter=Recorder()),
    ):
        pass


# what it does not have


def test_descriptors_are_not_taken_and_not_looked_for(tmp_path: Path) -> None:
    with StorageDaemon(Recorder()) as daemon, (tmp_path / "x").open("wb") as file:
        with pytest.raises(FdsNotPassedError):
            daemon.execute("add-fd", {"opaque": "x"}, fd=file.fileno())
        with pytest.raises(QmpError) as caught:
            daemon.execute("query-fdsets")
        assert caught.value.error_class == "CommandNotFound"
        assert targets.close_all_in_qemu(daemon, Naming(REPOSITORY)) == []


@pytest.mark.parametrize("missing", ["setpriv", "qemu-storage-daemon"])
def test_missing_program_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    other = {"setpriv": "qemu-storage-daemon", "qemu-storage-daemon": "setpriv"}[missing]
    (tmp_path / other).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    package = {"setpriv": "util-linux", "qemu-storage-daemon": "qemu-utils, before .* qemu-system-common"}[missing]
    with pytest.raises(UnsuitableError, match=rf"{missing} is not installed.*{package}"), StorageDaemon(Recorder()):
        pass


# ends that nobody wanted


def test_daemon_that_does_not_start_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu-storage-daemon"
    program.write_text("#!/bin/sh\necho first >&2\necho 'qemu-storage-daemon: no memory' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(StorageDaemonGoneError, match=r"exited with status 3: no memory\. Nothing"):
        StorageDaemon(Recorder()).__enter__()


class FakeElsewhere:
    """A host whose link is lost (Elsewhere), with the daemon that ran there (DaemonProcess)."""

    pid, returncode = 1, -signal.SIGTERM

    def __init__(self, *, is_lost: bool) -> None:
        self.is_lost = is_lost

    def start(self, *_arguments: Any, **_named: Any) -> Any:
        own_end, there = socket.socketpair()
        there.close()
        return self, own_end

    def refuse_lost(self) -> None:
        if self.is_lost:
            raise LinkLostError("hv1", "has ended")

    def words(self) -> str:
        return "The SSH connection to hv1 has ended."

    def poll(self) -> int:
        return self.returncode

    def wait(self, _timeout: float | None = None) -> int:
        return self.returncode

    def kill(self) -> None:
        pass


def test_link_that_is_lost_while_the_daemon_starts_is_the_fault_and_not_the_daemon() -> None:
    lost: Any = FakeElsewhere(is_lost=True)
    with pytest.raises(LinkLostError, match=r"^The SSH connection to hv1 has ended\. ") as caught:
        StorageDaemon(Recorder(), elsewhere=lost).__enter__()
    assert "qemu-storage-daemon" not in str(caught.value)
    reached: Any = FakeElsewhere(is_lost=False)
    with pytest.raises(StorageDaemonGoneError, match="was killed by SIGTERM"):
        StorageDaemon(Recorder(), elsewhere=reached).__enter__()


@pytest.mark.parametrize(
    ("ending", "how"),
    [("time.sleep(0.3); sys.exit('it is locked')", "exited with status 1"), ("time.sleep(60)", "did not answer")],
)
def test_daemon_whose_connection_ends_at_once_is_told_as_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, how: str
) -> None:
    program = tmp_path / storage_daemon.PROGRAM
    program.write_text(f"#!{sys.executable} -I\nimport os, sys, time\nos.closerange(3, 99)\n{ending}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(storage_daemon, "ENDING_S", 2.0 if "exited" in how else 0.1)
    with pytest.raises(StorageDaemonGoneError) as caught:
        StorageDaemon(Recorder()).__enter__()
    assert caught.value.how == how
    assert caught.value.last_words == ("it is locked" if "exited" in how else "")


def test_killed_daemon_is_told_as_such_and_by_every_command(tmp_path: Path) -> None:
    with StorageDaemon(Recorder()) as daemon:
        os.kill(daemon.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(StorageDaemonGoneError, match="was killed by SIGKILL"):
                daemon.execute("query-jobs")


def test_daemon_that_was_killed_at_the_end_is_warned_of(tmp_path: Path) -> None:
    recorder = Recorder()
    with StorageDaemon(recorder) as daemon:
        os.kill(daemon.pid, signal.SIGKILL)
        wait_for(lambda: not is_running(daemon.pid), "its end")
    (warning,) = recorder.warnings
    assert "SIGKILL" in warning
    assert "the next backup of each disk is a full" in warning


def test_death_in_the_middle_of_a_job_is_no_lost_connection(tmp_path: Path) -> None:
    """The job is not waited for, and what is left to undo is not told as failed."""
    path, to = create(tmp_path / "vda.qcow2"), create(tmp_path / "target.qcow2")
    subprocess.run(["qemu-io", "-c", "write 0 4M", str(path)], check=True, capture_output=True)
    recorder = Recorder()

    def back_up() -> None:
        with StorageDaemon(recorder) as daemon, Undo(recorder) as undo:
            daemon.open("vda", [Image(str(path), BlockDriver.QCOW2, False, (0, 0))], secret_value=lambda _secret: b"")
            targets.open_in_qemu(daemon, [targets.Target(to, "to")], undo=undo)
            data = {"job-id": "j", "device": daemon.chains["vda"][0], "target": "to", "sync": "full", "speed": 65536}
            data.update({"auto-finalize": False, "auto-dismiss": False})
            undo.push("end the job", lambda: jobs.cancel(daemon, ["j"]))
            daemon.execute("transaction", {"actions": [{"type": "blockdev-backup", "data": data}]})
            os.kill(daemon.pid, signal.SIGKILL)
            jobs.run(daemon, {"j": "vda"}, reporter=recorder, stop=Stop())

    with pytest.raises(StorageDaemonGoneError):
        back_up()
    assert recorder.warnings == []


def test_daemon_that_hangs_is_killed_and_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_daemon, "END_S", 0.1)
    monkeypatch.setattr(storage_daemon, "TERMINATE_S", 0.1)
    monkeypatch.setattr(qmp_socket, "Socket", impatient)
    recorder = Recorder()
    with StorageDaemon(recorder) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)
    assert not is_running(daemon.pid)
    (warning,) = recorder.warnings
    assert "was killed" in warning


def impatient(address: Any, *, name: str) -> Socket:
    return Socket(address, name=name, timeout_s=0.5)


def test_answer_that_comes_too_late_does_not_break_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that hangs for a while: what job.run takes for a lost connection goes on over the same one."""
    monkeypatch.setattr(qmp_socket, "Socket", impatient)
    monkeypatch.setattr(storage_daemon, "ENDING_S", 0.1)
    with StorageDaemon(Recorder()) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)
        with pytest.raises(ConnectionLostError, match=r"did not answer"):
            daemon.execute("query-version")
        os.kill(daemon.pid, signal.SIGCONT)
        monkeypatch.setattr(daemon._socket, "_timeout_s", 20.0)
        assert daemon.execute("query-jobs") == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_daemon_closes_the_images_when_its_parent_dies_in_whatever_way(tmp_path: Path, signum: signal.Signals) -> None:
    path = create(tmp_path / "vda.qcow2")
    script = textwrap.dedent(
        """
        import sys, time
        from tests.unit.builders import Recorder
        from vbackup.domain.offline import open_images
        from vbackup.model import BlockDriver
        with open_images([("vda", sys.argv[1], BlockDriver.QCOW2)], reporter=Recorder()) as opened:
            node = opened.disk_nodes()[0].top.node_name
            opened.monitor.execute("block-dirty-bitmap-add", {"node": node, "name": "b", "persistent": True})
            print(opened.monitor.pid, flush=True)
            time.sleep(60)
        """
    )
    argv = ["env", "--default-signal", sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(signum)
    wait_for(lambda: not is_running(pid), "the end of the daemon")
    assert bitmaps(path) == {"b": ["auto"]}


def test_daemon_that_survives_is_found_again_and_keeps_its_locks(tmp_path: Path) -> None:
    def is_free() -> bool:
        with readers.claimed(tmp_path) as free:
            return free

    program = """
        import fcntl, os, signal, sys
        from vbackup.qemu.storage_daemon import StorageDaemon, Survival
        from vbackup.report import Silent
        fd = os.open(sys.argv[1], os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_SH)
        with StorageDaemon(Silent(), survival=Survival("live-test", [fd])):
            print("runs", flush=True)
            signal.pause()
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "runs\n"
        parent.kill()
    assert storage_daemon.survivors("live-other") == []
    (pid,) = storage_daemon.survivors("live-test")
    try:
        assert not is_free()
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not storage_daemon.survivors("live-test"), "the daemon's end")
    wait_for(is_free, "the end of its locks")  # the kernel closes its files after its argv is gone


def test_interrupt_of_the_terminal_is_not_for_the_daemon() -> None:
    with StorageDaemon(Recorder()) as daemon:
        assert os.getsid(daemon.pid) != os.getsid(os.getpid())
        assert os.getpgid(daemon.pid) != os.getpgid(os.getpid())


# secrets


def luks(path: Path, passphrase: Path) -> Path:
    create_luks(path, passphrase=passphrase, size="4M")
    return path


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE)
    return path


def encrypted(path: Path, image_format: BlockDriver) -> Image:
    source_ = ImageLocation(SourceType.FILE, image_format, str(path), secret=SECRET)
    (image,) = backing_chain.images_of(
        Disk("vda", "vda", str(path), image_format, images=(source_,)), volume_path=lambda _pool, _volume: ""
    )
    return image


def test_secret_opens_both_kinds_of_luks_and_is_in_no_argument_log_or_file(
    tmp_path: Path, passphrase: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    qcow2 = luks(tmp_path / "luks.qcow2", passphrase)
    raw = luks(tmp_path / "luks.raw", passphrase)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    caplog.set_level(logging.DEBUG)
    asked: list[SecretRef] = []

    def value(secret: SecretRef) -> bytes:
        asked.append(secret)
        return PASSPHRASE.encode()

    recorder = Recorder()
    with StorageDaemon(recorder) as daemon:
        daemon.open("vda", [encrypted(qcow2, BlockDriver.QCOW2)], secret_value=value)
        daemon.open("vdb", [encrypted(raw, BlockDriver.RAW)], secret_value=value)
        nodes = {node["node-name"]: node for node in daemon.execute("query-named-block-nodes", {"flat": True})}
        assert [nodes[daemon.chains[dev][0]]["drv"] for dev in ("vda", "vdb")] == ["qcow2", "luks"]
        argv, environment = (Path(f"/proc/{daemon.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        assert PASSPHRASE.encode() not in argv + environment
        assert "memfd:" not in open_files(daemon.pid) + open_files(os.getpid())
        assert list(temporary.iterdir()) == []
    assert asked == [SECRET], "libvirt should be asked once for each secret"
    assert "object-add" in caplog.text
    assert "pässwörd" not in caplog.text
    assert "p\\u00e4ssw" not in caplog.text
    assert recorder.warnings == []


def open_files(pid: int) -> str:
    return subprocess.run(["ls", "-l", f"/proc/{pid}/fd"], capture_output=True, text=True, check=False).stdout


def test_wrong_secret_is_refused_by_qemu(tmp_path: Path, passphrase: Path) -> None:
    path = luks(tmp_path / "luks.qcow2", passphrase)
    with StorageDaemon(Recorder()) as daemon, pytest.raises(QmpError, match="Invalid password"):
        daemon.open("vda", [encrypted(path, BlockDriver.QCOW2)], secret_value=lambda _secret: b"wrong")


def test_lock_of_this_qemu_is_taken_for_one(tmp_path: Path) -> None:
    """The words that vbackup.errors.QmpError knows."""
    path = create(tmp_path / "vda.qcow2")
    with StorageDaemon(Recorder()) as one, StorageDaemon(Recorder()) as other:
        image = Image(str(path), BlockDriver.QCOW2, False, (0, 0))
        one.open("vda", [image], secret_value=lambda _secret: b"")
        with pytest.raises(QmpError) as caught:
            other.open("vda", [image], secret_value=lambda _secret: b"")
        assert caught.value.description.is_of_lock
    assert not QmpError("x", "GenericError", "Permission denied").description.is_of_lock


@pytest.mark.parametrize("said", ["Read-only file system", "Operation not permitted", "Permission denied"])
def test_refusal_to_write_is_known_by_its_words(said: str) -> None:
    assert QmpError("x", "GenericError", f"Could not open '/x': {said}").description.is_unwritable
    assert not QmpError("x", "GenericError", 'Failed to get "write" lock').description.is_unwritable


def test_chain_that_cannot_be_opened_for_writing_leaves_nothing_open_and_can_be_read(tmp_path: Path) -> None:
    """A reader has the active image, so only a second reader is let in. The layer below was opened before."""
    base, top = create(tmp_path / "base.qcow2"), tmp_path / "top.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(top)]
    subprocess.run(argv, check=True)
    images = [Image(str(path), BlockDriver.QCOW2, False, (0, number)) for number, path in enumerate((top, base))]
    with StorageDaemon(Recorder()) as reader, StorageDaemon(Recorder()) as daemon:
        reader.open("vda", images, secret_value=lambda _secret: b"", read_only=True)
        with pytest.raises(QmpError) as caught:
            daemon.open("vda", images, secret_value=lambda _secret: b"")
        assert caught.value.description.is_of_lock
        assert daemon.execute("query-named-block-nodes") == []
        assert dict(daemon.chains) == {}
        daemon.open("vda", images, secret_value=lambda _secret: b"", read_only=True)
        assert {node["ro"] for node in daemon.execute("query-named-block-nodes", {"flat": True})} == {True}


def test_what_it_says_of_scratch_nodes_is_no_warning() -> None:
    """QEMU does: a node without storage does not tell its cluster size."""
    recorder = Recorder()
    with StorageDaemon(recorder) as daemon:
        with Undo(recorder) as undo:
            sizes = {names.Naming(REPOSITORY).scratch_node(0): MIB}
            scratch.prepare(daemon, sizes, naming=Naming(REPOSITORY), undo=undo, stop=Stop())
        daemon._stderr.seek(0)
        assert b"information about the block size" in daemon._stderr.read()
    assert recorder.warnings == []
