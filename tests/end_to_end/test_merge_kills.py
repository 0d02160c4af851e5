"""Merges that are killed, cut off from power, or run out of room, at every step: no kept backup loses a byte.

A child process merges, and ends itself by SIGKILL before its n-th step. A step is whatever changes a file (Python's
audit events), an fsync, an exchange of directories, or a command for the storage daemon, which the kernel then ends.
After it the repository is read without a lock, then the next command recovers, and again every backup that is listed is
compared with what it contained. VBACKUP_KILLS=1 takes every step, the default is every thirtieth.

These are also the tests of repository.merge_stage.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.filesystem import Btrfs, Ext4, Xfs
from tests.trees import State, Tree
from tests.unit.builders import Recorder
from vbackup import files
from vbackup.errors import InterruptedBySignalError, NoSpaceError, StorageError
from vbackup.operations import consolidation
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.repository import filesystem
from vbackup.repository.merging import Way
from vbackup.stop import Stop

#: Events of Python's audit hooks that change a file, or start a process that does.
EVENTS = frozenset(
    ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "subprocess.Popen", "fcntl.ioctl")
)
EVERY = int(os.environ.get("VBACKUP_KILLS", "30"))
DIES, FAILS, DONE = -signal.SIGKILL, 1, 0
SIZE = 1024 * 1024


def tree(path: Path) -> Tree:
    """Two disks; a full, an increment, two heirs of different disks and one with both, and an increment above."""
    made = Tree(path)
    a = State.of(SIZE, {n: (n + 1, n + 1) for n in range(12)})
    b = State.of(SIZE, {n: (n + 101, n + 101) for n in range(4)})
    full = made.backup({"vda": a, "vdb": b})
    a, b = a.changed({1: (50, 50), 2: (0, 0), 13: (51, 52)}), b.changed({1: (150, 150)})
    first = made.backup({"vda": a, "vdb": b}, {"vda": full, "vdb": full})
    a = a.changed({1: (60, 60), 5: (61, 61), 6: (0, 0)})
    kept = made.backup({"vda": a}, {"vda": first})
    b = b.changed({2: (160, 160)})
    other = made.backup({"vda": a.changed({7: (70, 70)}), "vdb": b}, {"vda": kept, "vdb": first})
    made.backup({"vda": a.changed({8: (80, 80)}), "vdb": b.changed({3: (0, 0)})}, {"vda": other, "vdb": other})
    return made


def merge(one: Tree, way: Way) -> None:
    repository = one.repository
    with repository.lock(one.uuid):
        stop, reporter = Stop(), Recorder()
        consolidation.recover(repository, one.uuid, reporter=reporter, stop=stop)
        catalogue = repository.catalogue(one.uuid)
        ids = sorted(one.states)[:2]
        plan = consolidation.plan(catalogue, ids, repository=repository, way=way)
        done = consolidation.carry_out(plan, repository=repository, reporter=reporter, stop=stop)
        assert set(done.removed) == set(ids), done


def recover(one: Tree) -> list[str]:
    with one.repository.lock(one.uuid):
        return consolidation.recover(one.repository, one.uuid, reporter=Recorder(), stop=Stop())


def stepping(step: Callable[[], None]) -> None:
    """From now on, call ``step`` before everything in this process that changes something."""

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            step()

    sys.addaudithook(audit)
    for module, name in ((files, "fsync"), (filesystem, "exchange"), (StorageDaemon, "execute")):
        setattr(module, name, stepped(getattr(module, name), step))
    from vbackup.repository import merge_stage

    merge_stage.fsync = files.fsync  # type: ignore[attr-defined]


def stepped(call: Callable[..., object], step: Callable[[], None]) -> Callable[..., object]:
    def both(*arguments: object, **named: object) -> object:
        step()
        done = call(*arguments, **named)
        step()
        return done

    return both


def in_child(work: Callable[[], None], *, at: int, how: Callable[[], None], prepare: Callable[[], None]) -> int:
    """Run the work in a child process, which calls ``how`` at step ``at``; return its exit status."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            if count == at:
                how()

        try:
            prepare()
            stepping(step)
            work()
        except BaseException as err:  # noqa: BLE001 - this process must not go on as pytest
            print(repr(err), file=sys.stderr)
            os._exit(FAILS)
        os._exit(DONE)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def mounted(one: Ext4) -> Iterator[Ext4]:
    one.mount()
    try:
        yield one
    finally:
        subprocess.run(["umount", "-l", str(one.path)], check=True)


@pytest.fixture(params=["reflink", "btrfs", "in-place", "copy", "no-exchange", "in-place-no-exchange"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Way, Callable[[], None]]]:
    """Where, which way, and what is done in the child first."""

    def nothing() -> None:
        pass

    def without_exchange() -> None:
        abilities = filesystem.abilities
        filesystem.abilities = lambda directory: replace(abilities(directory), exchanges=False)

    ways = {"reflink": Way.REFLINK, "btrfs": Way.REFLINK}
    way = Way.IN_PLACE if request.param.startswith("in-place") else ways.get(request.param, Way.COPY)
    prepare = without_exchange if "no-exchange" in request.param else nothing
    if way is Way.REFLINK:
        if os.getuid() != 0:
            pytest.skip("needs root")
        with mounted(Btrfs(tmp_path) if request.param == "btrfs" else Xfs(tmp_path, size_mib=320)) as disk:
            yield disk.path, way, prepare
    else:
        yield tmp_path, way, prepare


def copied(original: Tree, path: Path) -> Tree:
    shutil.copytree(original.repository.path, path)
    one = Tree.__new__(Tree)
    one.repository, one.uuid, one.states = type(original.repository).open(path), original.uuid, original.states
    return one


def test_killed_at_every_step(
    case: tuple[Path, Way, Callable[[], None]], request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    place, way, prepare = case
    original = tree(place / "original")
    points = checked = 0
    at = 1 + sum(request.node.name.encode()) % EVERY
    while True:
        one = copied(original, place / f"at{at}")
        status = in_child(lambda one=one: merge(one, way), at=at, how=die, prepare=prepare)
        assert status in (DIES, DONE), capfd.readouterr().err
        if "no-exchange" not in request.node.name:
            one.check(lists=False, by_qemu=False)  # whoever reads without a lock
            if way is Way.IN_PLACE:  # what vbackup itself reads before anything is recovered
                kept = sorted(original.states)[2:]
                one.check_restore(kept[points % len(kept)], place / f"restored{at}")
                shutil.rmtree(place / f"restored{at}")
        recover(one)
        checked += one.check(by_qemu=status == DONE)
        assert sorted(original.states)[2:] == [each for each in one.ids() if each not in sorted(original.states)[:2]]
        left = {entry.name for entry in one.directory.iterdir()} - set(one.ids())
        assert left == {"lock", "domain.json"}
        merge(one, way) if len(one.ids()) == len(original.states) else None
        shutil.rmtree(one.repository.path)
        if status == DONE:
            break
        points += 1
        at += EVERY
    with capfd.disabled():
        print(f" {points} points, {checked} disks compared", end="")
    assert points >= 30 // EVERY


@pytest.fixture
def disk(tmp_path: Path, way: Way) -> Iterator[Ext4]:
    """A filesystem for that way, which can be lost."""
    with mounted(Xfs(tmp_path, size_mib=320) if way is Way.REFLINK else Ext4(tmp_path, size_mib=96)) as one:
        yield one


def waited_for_daemons(disk: Ext4) -> None:
    """Nothing has a file of the filesystem open any more: the daemon of a dead process takes a moment to end."""
    for _ in range(200):
        done = subprocess.run(["umount", str(disk.path)], capture_output=True, check=False)
        if done.returncode == 0:
            disk.mount()
            return
        time.sleep(0.05)
    raise AssertionError("the filesystem is still in use")


@pytest.mark.parametrize("way", [Way.IN_PLACE, Way.COPY, Way.REFLINK])
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_power_is_lost_at_every_step(
    way: Way, tmp_path: Path, disk: Ext4, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    original = tree(tmp_path / "original")
    points = checked = 0
    at = 1 + sum(request.node.name.encode()) % (3 * EVERY)
    while True:
        one = copied(original, disk.path / "repository")
        os.sync()

        def lose() -> None:
            disk.lose()
            die()

        status = in_child(lambda one=one: merge(one, way), at=at, how=lose, prepare=lambda: None)
        assert status in (DIES, DONE), capfd.readouterr().err
        waited_for_daemons(disk)
        recover(one)
        checked += one.check(by_qemu=status == DONE)
        shutil.rmtree(one.repository.path)
        if status == DONE:
            break
        points += 1
        at += 3 * EVERY
    with capfd.disabled():
        print(f" {points} points, {checked} disks compared", end="")
    assert points >= 30 // (3 * EVERY)


@pytest.mark.parametrize("way", [Way.IN_PLACE, Way.COPY, Way.REFLINK])
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_no_room_in_the_middle(way: Way, tmp_path: Path, disk: Ext4, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan believes that there is room; the filesystem has less and less."""
    original = tree(tmp_path / "original")
    place = disk.path
    abilities = filesystem.abilities
    monkeypatch.setattr(filesystem, "abilities", lambda directory: replace(abilities(directory), free_bytes=1 << 40))
    failures = 0
    for free_kib in (*range(0, 1024, 64 * (1 + EVERY // 5)), 8192):
        one = copied(original, place / "repository")
        os.sync()  # data that is not stored yet has no blocks
        filler = place / "filler"
        with filler.open("wb") as file, suppress(OSError):
            while (left := free_bytes(place) - (free_kib << 10)) > 0:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(left, 1 << 20))
        caught = None
        try:
            merge(one, way)
        except StorageError as err:  # a daemon that could not even begin has no such status
            caught = err
        if caught is not None:
            failures += 1
            assert isinstance(caught, NoSpaceError), caught
            one.check(lists=False, by_qemu=False)
        filler.unlink()
        recover(one)
        one.check()
        shutil.rmtree(one.repository.path)
    assert failures


def free_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bfree * status.f_frsize  # ext4 keeps some for root alone, which this is


@pytest.mark.parametrize("way", [Way.IN_PLACE, Way.COPY])
def test_request_to_stop_in_the_middle(way: Way, tmp_path: Path) -> None:
    """SIGTERM only sets a request: what had begun is undone, or finished by the next run."""
    original = tree(tmp_path / "original")

    class Late(Stop):
        def __init__(self, after: int) -> None:
            super().__init__()
            self.left = after

        def check(self) -> None:
            self.left -= 1
            if self.left < 0:
                self.request(signal.SIGTERM)
            super().check()

    stopped = 0
    for after in (0, 1, 2, 4, 6, 8, 11, 14, 18, 22, 27, 33, 40):
        one = copied(original, tmp_path / "one")
        ids = sorted(one.states)[:2]
        with one.repository.lock(one.uuid):
            plan = consolidation.plan(one.repository.catalogue(one.uuid), ids, repository=one.repository, way=way)
            try:
                consolidation.carry_out(plan, repository=one.repository, reporter=Recorder(), stop=Late(after))
            except InterruptedBySignalError:
                stopped += 1
        one.check(lists=False, by_qemu=False)
        recover(one)
        one.check(by_qemu=False)
        shutil.rmtree(one.repository.path)
    assert stopped >= 8
