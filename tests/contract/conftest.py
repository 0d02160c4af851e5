"""Three monitors for one suite: the fake, a socket to a separate QEMU, the passthrough of a libvirt domain.

Every QEMU has one disk, /machine/peripheral/virtio-disk0, which is an overlay on a backing file. What a
test adds goes through ``Bench``, which takes it away again and insists that nothing is left.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_qemu import FakeBitmap, FakeDisk, FakeQemu
from vbackup.domain.passthrough import Passthrough
from vbackup.errors import ConnectionLostError, QmpError
from vbackup.qemu.monitor import Event, Monitor
from vbackup.qemu.qmp_socket import Socket

if TYPE_CHECKING:
    from tests.lab import Lab

MIB = 1024 * 1024
SIZE_BYTES = 16 * MIB
#: The disk of the guest, and its device.
DISK = "virtio-disk0"
QDEV = f"/machine/peripheral/{DISK}/virtio-backend"
KINDS = ("fake", "socket", "passthrough")
#: For a real QEMU on a busy machine; the fake never waits.
PATIENCE_S = 20.0

Action = dict[str, Any]


def action(kind: str, **data: Any) -> Action:
    """An action of a transaction; underscores become dashes."""
    return {"type": kind, "data": {name.replace("_", "-"): value for name, value in data.items()}}


def add_bitmap(node: str, name: str, **more: Any) -> Action:
    return action("block-dirty-bitmap-add", node=node, name=name, **more)


def backup(job_id: str, device: str, target: str, **more: Any) -> Action:
    """A blockdev-backup that waits to be finalised and dismissed, as vbackup's do."""
    data = {"sync": "full", "auto_finalize": False, "auto_dismiss": False, **more}
    return action("blockdev-backup", job_id=job_id, device=device, target=target, **data)


@dataclass
class Machine:
    """One running QEMU of one of the three kinds."""

    monitor: Monitor
    directory: Path  #: where QEMU may open files
    disk_path: Path  #: of the active layer of virtio-disk0
    backing_path: Path
    write: Callable[[str, int, int], None]  #: node name (or DISK for the guest's own), offset, length
    open_failing: Callable[[str, str, int], None]  #: node name, path, errno of every write to it
    open_forgetful: Callable[[str, str, int], Action]  #: node name, path, errno of the last write; gives the options
    open_inconsistent: Callable[[str, str, str], None]  #: node name, path, bitmap that a crash left on it
    kill: Callable[[], None]


class Bench:
    """A machine for the length of one test."""

    def __init__(self, machine: Machine) -> None:
        self.monitor = machine.monitor
        self.directory = machine.directory
        self.machine = machine
        self._before = self.state()
        self._images = 0
        self._events: list[Event] = []

    # commands

    def execute(self, command: str, **arguments: Any) -> Any:
        """Underscores in argument names become dashes."""
        return self.monitor.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def transaction(self, *actions: Action) -> None:
        self.execute("transaction", actions=list(actions))

    def refused(self, command: str, **arguments: Any) -> QmpError:
        """QEMU's error to a command that must fail."""
        with pytest.raises(QmpError) as caught:
            self.execute(command, **arguments)
        assert caught.value.command == command
        return caught.value

    def refused_transaction(self, *actions: Action) -> QmpError:
        return self.refused("transaction", actions=list(actions))

    # images and nodes

    def image(self, image_format: str = "qcow2", size_bytes: int = SIZE_BYTES, options: Sequence[str] = ()) -> Path:
        self._images += 1
        path = self.directory / f"{self._images}.{image_format}"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", image_format, *options, os.fspath(path), str(size_bytes)], check=True
        )
        return path

    def node(self, name: str, image_format: str = "qcow2", size_bytes: int = SIZE_BYTES) -> str:
        """A new node on a new image."""
        self.open(name, os.fspath(self.image(image_format, size_bytes)), driver=image_format)
        return name

    def open(self, name: str, filename: str, *, driver: str = "qcow2") -> None:
        self.execute("blockdev-add", driver=driver, node_name=name, file=plain_file(filename))

    def failing_node(self, name: str, errno: int) -> str:
        """A node on a new image that cannot be written."""
        self.machine.open_failing(name, os.fspath(self.image()), errno)
        return name

    def crashed_node(self, name: str, bitmap: str) -> str:
        """A node on an image whose persistent bitmap was not stored, because its QEMU was killed."""
        self.machine.open_inconsistent(name, os.fspath(self.image()), bitmap)
        return name

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["node-name"]: node for node in self.execute("query-named-block-nodes", flat=True)}

    def bitmap(self, node: str, name: str) -> dict[str, Any] | None:
        shown = self.nodes()[node].get("dirty-bitmaps", [])
        return next((one for one in shown if one.get("name") == name), None)

    def write(self, node: str, offset: int, length: int) -> None:
        self.machine.write(node, offset, length)

    # jobs

    def job(self, job_id: str) -> dict[str, Any] | None:
        return next((job for job in self.execute("query-jobs") if job["id"] == job_id), None)

    def wait(self, job_id: str, status: str) -> dict[str, Any]:
        """Until the job has that status, as query-jobs tells."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            job = self.job(job_id)
            assert job is not None, f"{job_id} is gone"
            if job["status"] == status:
                return job
            assert time.monotonic() < deadline, f"{job_id} is {job['status']}, not {status}"
            self.take_event(0.05)

    def take_event(self, timeout_s: float) -> bool:
        event = self.monitor.next_event(timeout_s)
        if event is not None:
            self._events.append(event)
        return event is not None

    def told(self, job_id: str, until: str) -> list[str]:
        """The statuses that events told of a job, up to ``until``; pauses, which QEMU takes at will, left out."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            statuses: list[str] = []
            for event in self._events:
                status = event.data.get("status")
                if event.data.get("id") == job_id and status != "paused" and status not in statuses[-1:]:
                    statuses.append(status)
            if until in statuses:
                return statuses
            assert time.monotonic() < deadline, f"{job_id}: {statuses}"
            self.take_event(0.05)

    def failures(self, job_id: str) -> list[tuple[str, str]]:
        """What events told of the failures of a job: operation and action, each once."""
        while self.take_event(0.5):
            pass
        data = [one.data for one in self._events if one.name == "BLOCK_JOB_ERROR" and one.data["device"] == job_id]
        return sorted({(one["operation"], one["action"]) for one in data})

    # the end of a test

    def disk_node(self) -> str:
        """The node of the guest's disk."""
        inserted = next(entry for entry in self.execute("query-block") if entry.get("qdev") == QDEV)["inserted"]
        name: str = inserted["node-name"]
        return name

    def state(self) -> dict[str, Any]:
        """What a test must leave as it found it."""
        return {
            "nodes": sorted(name for name in self.nodes() if not name.startswith("#")),
            "bitmaps": {
                name: sorted(one.get("name", "") for one in node["dirty-bitmaps"])
                for name, node in self.nodes().items()
                if node.get("dirty-bitmaps")
            },
            "jobs": [job["id"] for job in self.execute("query-jobs")],
            "fdsets": [one["fdset-id"] for one in self.execute("query-fdsets")],
        }

    def clear(self) -> None:
        for job in self.execute("query-jobs"):
            if job["status"] != "concluded":
                self.execute("job-cancel", id=job["id"])
                self.wait(job["id"], "concluded")
            self.execute("job-dismiss", id=job["id"])
        for one in self.nodes()[self.disk_node()].get("dirty-bitmaps", []):
            self.execute("block-dirty-bitmap-remove", node=self.disk_node(), name=one["name"])
        for name in sorted(self.nodes()):
            if name not in self._before["nodes"] and not name.startswith("#"):
                self.execute("blockdev-del", node_name=name)
        for one in self.execute("query-fdsets"):
            self.execute("remove-fd", fdset_id=one["fdset-id"])
        while self.monitor.next_event(0) is not None:
            pass
        assert self.state() == self._before
        for path in self.directory.glob("[0-9]*.*"):
            path.unlink()


@contextmanager
def fake_machine(directory: Path) -> Iterator[Machine]:
    disk, backing = directory / "disk.qcow2", directory / "backing.qcow2"
    qemu = FakeQemu([FakeDisk(DISK, SIZE_BYTES, path=os.fspath(disk), backing_paths=(os.fspath(backing),))])

    def write(node: str, offset: int, length: int) -> None:
        qemu.write(qemu.top(DISK) if node == DISK else node, offset, length)

    def open_failing(name: str, path: str, errno: int) -> None:
        qemu.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": plain_file(path)})
        qemu.fail_job(name, os.strerror(errno))

    def open_forgetful(name: str, path: str, errno: int) -> Action:
        options = {"driver": "qcow2", "node-name": name, "file": plain_file(path)}
        qemu.execute("blockdev-add", options)
        qemu.fail_flush(name, os.strerror(errno))
        return options

    def open_inconsistent(name: str, path: str, bitmap: str) -> None:
        qemu.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": plain_file(path)})
        qemu.bitmaps(name)[bitmap] = FakeBitmap(bitmap, persistent=True, recording=False, inconsistent=True)

    with qemu:
        yield Machine(qemu, directory, disk, backing, write, open_failing, open_forgetful, open_inconsistent, qemu.kill)


@contextmanager
def socket_machine(directory: Path) -> Iterator[Machine]:
    disk, backing = make_disk(directory)
    below = {"driver": "qcow2", "node-name": "libvirt-2-format", "read-only": True, "file": file_node(2, backing)}
    node = {"driver": "qcow2", "node-name": "libvirt-1-format", "file": file_node(1, disk), "backing": below}
    device = f"virtio-blk-pci,drive=libvirt-1-format,id={DISK}"
    options = ["-machine", "pc", "-m", "32", "-blockdev", json.dumps(node), "-device", device]
    with qemu_process(directory / "qmp", options) as process, _connected(directory / "qmp") as monitor:
        yield Machine(
            monitor,
            directory,
            disk,
            backing,
            writer(monitor),
            opener(monitor),
            forgetful(monitor),
            crasher(monitor),
            functools.partial(end, process),
        )


def _connected(path: Path) -> Socket:
    """A monitor that has greeted: a QEMU that is just starting can send an event (RESUME) before its greeting."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with Socket(os.fspath(path)):
                return Socket(os.fspath(path))
        except ConnectionLostError:
            assert time.monotonic() < deadline, "QEMU does not greet"


@contextmanager
def qemu_process(path: Path, options: Sequence[str] = ("-machine", "none")) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU that serves QMP at ``path``."""
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-nodefaults", *options]
    argv += ["-qmp", f"unix:{path},server=on,wait=off"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not _is_listened_on(path):
                assert process.poll() is None, "QEMU did not start"
                assert time.monotonic() < deadline, "QEMU makes no socket"
                time.sleep(0.01)  # nothing tells when it is there
            yield process
        finally:
            end(process)


def _is_listened_on(path: Path) -> bool:
    """The name is there before QEMU listens (proc(5), net/unix: 00010000 is __SO_ACCEPTCON)."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[-1] == os.fspath(path) and line[3] == "00010000" for line in lines)


@contextmanager
def passthrough_machine(directory: Path, lab: Lab) -> Iterator[Machine]:
    from tests.lab import domain_xml

    disk, backing = make_disk(directory)
    xml = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
    )
    machine = lab.start(domain_xml(directory.name, [xml]))
    with ExitStack() as stack:
        stack.callback(lab.remove, machine)
        monitor = stack.enter_context(Passthrough(machine.handle))
        yield Machine(
            monitor,
            directory,
            disk,
            backing,
            writer(monitor),
            opener(monitor),
            forgetful(monitor),
            crasher(monitor),
            machine.destroy,
        )


def make_disk(directory: Path) -> tuple[Path, Path]:
    disk, backing = directory / "disk.qcow2", directory / "backing.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, os.fspath(backing), str(SIZE_BYTES)], check=True)
    subprocess.run([*create, "-b", os.fspath(backing), "-F", "qcow2", os.fspath(disk)], check=True)
    return disk, backing


def file_node(number: int, path: Path) -> dict[str, Any]:
    return {"driver": "file", "node-name": f"libvirt-{number}-storage", "filename": os.fspath(path)}


def writer(monitor: Monitor) -> Callable[[str, int, int], None]:
    """Writes with qemu-io: to a node that no device has, or as the guest through its device.

    QEMU refuses the former while a job uses the node, and says so only on its own stdout.
    """

    def write(node: str, offset: int, length: int) -> None:
        where = f"-d {QDEV}" if node == DISK else node
        line = f'qemu-io {where} "write -P 7 {offset} {length}"'
        said = monitor.execute("human-monitor-command", {"command-line": line})
        assert "rror" not in said, said

    return write


def opener(monitor: Monitor) -> Callable[[str, str, int], None]:
    """Puts QEMU's own error injection below a new node."""

    def open_failing(name: str, path: str, errno: int) -> None:
        error = {"event": "write_aio", "errno": errno, "immediately": False, "once": False}
        file = {"driver": "blkdebug", "image": plain_file(path), "inject-error": [error]}
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file})

    return open_failing


def failing_at_the_end(file: Mapping[str, Any], errno: int) -> dict[str, Any]:
    """Storage that takes everything but the second write of the L2 table, which is the one at the close."""
    return {
        "driver": "blkdebug",
        "image": file,
        "set-state": [{"event": "l2_update", "state": 1, "new_state": 2}],
        "inject-error": [{"event": "l2_update", "state": 2, "errno": errno, "once": False, "immediately": False}],
    }


def forgetful(monitor: Monitor) -> Callable[[str, str, int], Action]:
    def open_forgetful(name: str, path: str, errno: int) -> Action:
        file = failing_at_the_end(plain_file(path), errno)
        options = {"driver": "qcow2", "node-name": name, "file": file}
        monitor.execute("blockdev-add", options)
        return options

    return open_forgetful


def crasher(monitor: Monitor) -> Callable[[str, str, str], None]:
    """Has a program crash while the image is open, then opens it in QEMU."""

    def open_inconsistent(name: str, path: str, bitmap: str) -> None:
        subprocess.run(["qemu-img", "bitmap", "--add", path, bitmap], check=True)
        subprocess.run(["qemu-io", "-c", "write 0 64k", "-c", "abort", path], check=False, capture_output=True)
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": plain_file(path)})

    return open_inconsistent


def plain_file(path: str) -> dict[str, str]:
    return {"driver": "file", "filename": path}


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextmanager
def make_machine(kind: str, request: pytest.FixtureRequest) -> Iterator[Machine]:
    # The path is short: a socket is below it.
    directory = Path(tempfile.mkdtemp(prefix="vb-contract-", dir="/tmp"))
    try:
        if kind == "fake":
            with fake_machine(directory) as machine:
                yield machine
        elif kind == "socket":
            with socket_machine(directory) as machine:
                yield machine
        else:
            with passthrough_machine(directory, request.getfixturevalue("lab")) as machine:
                yield machine
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="package", params=KINDS)
def shared_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with make_machine(request.param, request) as machine:
        yield machine


@pytest.fixture
def bench(shared_machine: Machine) -> Iterator[Bench]:
    """The machine that all tests share, as it was when it started."""
    if isinstance(shared_machine.monitor, FakeQemu):
        shared_machine.monitor.sent.clear()
    made = Bench(shared_machine)
    yield made
    made.clear()


@pytest.fixture(params=KINDS)
def doomed(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of the test's own, to be killed."""
    with make_machine(request.param, request) as machine:
        yield machine
