"""The process, or its QEMU, is killed at every step of the journal; then the next run is started.

It ends well, nothing of the dead one is left, and every restorable point is byte for byte what the disks held:
what QEMU itself copied at that time is the reference. The guest writes only when the test says so. VBACKUP_KILLS=1
kills backups of every level at every step, the default takes the levels in turn.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.crossed import crossed
from tests.daemon import Daemon, wait_for
from tests.lab import HEEDING_SIGNALS, DiskSpec, compare, domain_xml
from vbackup.repository.journal import Step
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

LEVELS = ("full", "incremental", "differential")
POINTS = [(step, when) for step in Step if step is not Step.STREAMED for when in ("before", "after")]
KILLED = crossed(POINTS, LEVELS)
#: The steps after which the jobs are in QEMU, or have ended well.
FINISHED = {(Step.STARTED, "before"), *((step, when) for step, when in POINTS if step in (Step.COPIED, Step.FLUSHED))}
FINISHED.add((Step.STARTED, "after"))
#: With a fleecing area: where it makes a difference.
STAGED_POINTS = [
    (Step.MOMENT, "after"),
    (Step.STARTED, "before"),
    (Step.STARTED, "after"),
    (Step.COPIED, "before"),
    (Step.COPIED, "after"),
    (Step.FLUSHED, "after"),
]
#: Of the domain that lives on from point to point, and of the one whose QEMU is killed; the latter has its own UUID.
NAME, DOOMED = "killed", "doomed"
DEVS = ("vda", "vdb")


class World:
    """A domain with two disks, and a repository."""

    command: Command  #: of the test at work

    def __init__(self, daemon: Daemon, directory: Path, name: str) -> None:
        self.daemon, self.directory, self.name = daemon, directory, name
        self._uuid = str(uuid.uuid4())
        self.repository = directory / "repository"
        self.specs = [DiskSpec(directory / f"{dev}.qcow2", dev=dev, size="4M") for dev in DEVS]
        for spec in self.specs:
            spec.create()
        self._writes = 0
        self.start()
        Repository.create(self.repository)

    def start(self) -> None:
        disks = [spec.xml() for spec in self.specs]
        self.machine = self.daemon.start(domain_xml(self.name, disks, top=f"<uuid>{self._uuid}</uuid>"))
        roots = {one.get("qdev"): one["inserted"]["node-name"] for one in self.machine.execute("query-block")}
        self._nodes = {dev: roots[self.machine.qdev(dev)] for dev in DEVS}

    def write(self, reference: str) -> None:
        """The guest writes something new to both disks, and QEMU copies what they hold then."""
        self._writes += 1
        for dev in DEVS:
            self.machine.write(
                dev,
                f"write -P {self._writes % 255 + 1} {self._writes * 64 % 4096}k 64k",
                f"write -z {self._writes * 32 % 4096}k 4k",
            )
            path = self._reference(reference, dev)
            path.unlink(missing_ok=True)
            self.machine.execute(
                "drive-backup", device=self._nodes[dev], job_id=dev, target=str(path), sync="full", format="qcow2"
            )
        # Jobs of a backup that was killed may be there as well.
        wait_for(lambda: not {one["id"] for one in self.machine.execute("query-jobs")} & set(DEVS), "the copies")

    def _reference(self, name: str, dev: str) -> Path:
        # QEMU, which is not root, makes them.
        return self.directory / "references" / f"{name}-{dev}.qcow2"

    def vbackup(self, *arguments: str) -> dict[str, Any]:
        return self.command("-c", self.daemon.uri, "-q", *arguments, "-r", self.repository, "--json").document

    def struck(self, step: Step, when: str, victim: str, *options: str) -> int:
        """The exit status of a backup that is struck at that step."""
        argv = [*HEEDING_SIGNALS, sys.executable, "-m", "tests.end_to_end.killed", step.value, when, victim, "--"]
        argv += ["-c", self.daemon.uri, "-q", "backup", self.name, *options, "-r", str(self.repository), "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert "Traceback" not in done.stderr
        return done.returncode

    def backups(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.vbackup("list", self.name)["backups"]
        return listed

    def check_restore(self, backup_id: str, reference: str) -> None:
        output = self.directory / "out" / backup_id
        self.vbackup("restore", self.name, "--backup", backup_id, "--output", str(output))
        for dev in DEVS:
            compare(output / f"{dev}.qcow2", self._reference(reference, dev))
        shutil.rmtree(output)

    def check_clean(self) -> None:
        """Only the checkpoints of possible bases are left."""
        state = self.machine.state()
        assert (state["jobs"], state["fdsets"]) == ([], [])
        assert not [name for name in state["nodes"] if name.startswith("vbackup-")]
        assert not list(self.repository.glob("*/*.partial"))
        ids = {one["id"] for one in self.backups()}
        for found in state["bitmaps"].values():
            names = [name for name in found if "-end-" not in name]
            assert 1 <= len(names) <= 2
            assert all(any(one in name for one in ids) and not name.endswith("-working") for name in names)

    def qemu_pid(self) -> int:
        return int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())


@contextmanager
def a_world(daemon: Daemon, name: str) -> Iterator[World]:
    # QEMU, which is not root, has to reach the disks and the references: pytest's directories are closed to it.
    directory = Path(tempfile.mkdtemp(prefix="vb-kill-", dir="/tmp"))
    directory.chmod(0o755)
    (directory / "references").mkdir()
    (directory / "references").chmod(0o777)
    yield World(daemon, directory, name)
    daemon.clear()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def _shared(_daemon: Daemon) -> Iterator[World]:
    with a_world(_daemon, NAME) as made:
        yield made


@pytest.fixture
def shared(_shared: World, command: Command) -> World:
    """A world that one point leaves to the next; each begins a new chain."""
    _shared.command = command
    return _shared


@pytest.fixture(scope="module")
def _doomed(_daemon: Daemon) -> Iterator[World]:
    with a_world(_daemon, DOOMED) as made:
        yield made


@pytest.fixture
def world(_doomed: World, command: Command) -> World:
    """A world whose QEMU comes to an end at each point; the next point begins with its successor."""
    _doomed.command = command
    return _doomed


@pytest.mark.parametrize(("step", "when", "level"), KILLED, ids=lambda value: getattr(value, "value", value))
def test_killed_backup_is_finished_or_undone(shared: World, step: Step, when: str, level: str) -> None:
    world = shared
    world.write("base")
    base = world.vbackup("backup", NAME, "--level", "full")
    world.write("killed")
    assert world.struck(step, when, "kill", "--level", level) == -signal.SIGKILL
    world.write("last")
    last = world.vbackup("backup", NAME)
    world.check_clean()
    made = world.backups()
    if (step, when) in FINISHED:
        finished = made[-2]
        assert (finished["level"], last["parent"]) == (level, finished["id"])
        world.check_restore(finished["id"], "killed")
    else:
        assert ([one["id"] for one in made[-2:]], last["parent"]) == ([base["id"], last["id"]], base["id"])
    world.check_restore(base["id"], "base")
    world.check_restore(last["id"], "last")


@pytest.mark.parametrize(("step", "when"), STAGED_POINTS, ids=lambda value: getattr(value, "value", value))
def test_killed_backup_with_a_fleecing_area_is_finished_or_undone(
    shared: World, step: Step, when: str, tmp_path: Path
) -> None:
    """Its copies begin after STARTED, so there is nothing to finish before."""
    world = shared
    world.write("base")
    base = world.vbackup("backup", NAME, "--level", "full")
    world.write("killed")
    assert world.struck(step, when, "kill", "--fleecing", str(tmp_path)) == -signal.SIGKILL
    world.write("last")
    last = world.vbackup("backup", NAME, "--fleecing", str(tmp_path))
    world.check_clean()
    made = world.backups()
    if step in (Step.COPIED, Step.FLUSHED):
        assert last["parent"] == made[-2]["id"] != base["id"]
        world.check_restore(made[-2]["id"], "killed")
    else:
        assert last["parent"] == base["id"]
    world.check_restore(base["id"], "base")
    world.check_restore(last["id"], "last")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "when"), POINTS, ids=lambda value: getattr(value, "value", value))
def test_terminated_backup_leaves_nothing(shared: World, step: Step, when: str) -> None:
    world = shared
    base = world.vbackup("backup", NAME, "--level", "full")
    world.write("last")
    before = world.machine.state()
    assert world.struck(step, when, "term") == 128 + signal.SIGTERM
    assert world.machine.state() == before
    assert not list(world.repository.glob("*/*.partial"))
    last = world.vbackup("backup", NAME, "--level", "incremental")
    assert last["parent"] == base["id"]
    world.check_restore(last["id"], "last")


@pytest.mark.parametrize(("step", "when"), POINTS, ids=lambda value: getattr(value, "value", value))
def test_killed_qemu_costs_at_most_a_full(world: World, step: Step, when: str) -> None:
    world.write("base")
    base = world.vbackup("backup", DOOMED, "--level", "full")
    world.write("before")
    world.struck(step, when, str(world.qemu_pid()))
    wait_for(lambda: not world.machine.handle.is_active(), "libvirt noticing QEMU's death")
    world.start()
    world.write("last")
    last = world.vbackup("backup", DOOMED)
    world.check_clean()
    world.check_restore(last["id"], "last")
    world.check_restore(base["id"], "base")


def test_number_of_points() -> None:
    """Told in the output of the suite (-rP shows it)."""
    print(
        f"kill matrix: {len(KILLED)} points of vbackup, {len(STAGED_POINTS)} with a fleecing area,"
        f" {len(POINTS)} of QEMU, {len(POINTS)} of SIGTERM"
    )
    assert len(POINTS) == 12
