"""Images are synced while they are written, and no error of the storage is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vbackup.errors import NoSpaceError, StorageError
from vbackup.images import writeback as writeback_module
from vbackup.images.writeback import PIECE_BYTES, Writeback
from vbackup.qemu.jobs import Job, JobStatus

WAIT_S = 10.0


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    made = {job_id: tmp_path / f"{job_id}.qcow2" for job_id in ("one", "two")}
    for path in made.values():
        path.write_bytes(b"data")
    return made


def at(**done_bytes: int) -> dict[str, Job]:
    return {
        job_id: Job(job_id, "backup", JobStatus.RUNNING, done, 2**40, error=None) for job_id, done in done_bytes.items()
    }


class Disk:
    """Records the syncs; ``fails`` may raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[tuple[str, str]] = []
        self.was_synced = threading.Event()
        self.fails: Callable[[str, str], None] = lambda _how, _name: None
        for how in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, how, lambda fd, how=how: self._sync(how, fd))

    def _sync(self, how: str, fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().stem
        try:
            self.fails(how, name)
        finally:
            self.synced.append((how, name))
            self.was_synced.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_small_backup_is_put_there_once_at_its_end(paths: dict[str, Path], disk: Disk) -> None:
    before, threads = open_fds(), threading.active_count()
    with Writeback(paths) as writeback:
        writeback.on_tick(at(one=PIECE_BYTES - 1, two=0))
        assert threading.active_count() == threads
        assert disk.synced == []
        writeback.finish()
    assert sorted(disk.synced) == [("fsync", "one"), ("fsync", "two")]
    assert open_fds() == before


def test_each_piece_is_put_there_while_the_job_runs(paths: dict[str, Path], disk: Disk) -> None:
    before = open_fds()
    with Writeback(paths) as writeback:
        for piece in (1, 2):
            disk.was_synced.clear()
            writeback.on_tick(at(one=piece * PIECE_BYTES, two=5))
            assert disk.was_synced.wait(WAIT_S)
            writeback.on_tick(at(one=piece * PIECE_BYTES + 5, two=6))
    assert disk.synced == [("fdatasync", "one")] * 2
    assert open_fds() == before


def test_image_is_not_asked_for_twice_at_once(paths: dict[str, Path], disk: Disk) -> None:
    may_go_on = threading.Event()
    disk.fails = lambda _how, _name: assert_(may_go_on.wait(WAIT_S))
    with Writeback(paths) as writeback:
        for piece in range(1, 10):
            writeback.on_tick(at(one=piece * PIECE_BYTES))
        may_go_on.set()
    assert len(disk.synced) == 1


def assert_(condition: bool) -> None:
    assert condition


def tick_on(paths: dict[str, Path], disk: Disk) -> None:
    with Writeback(paths) as writeback:
        writeback.on_tick(at(one=PIECE_BYTES))
        for _ in range(1000):
            assert disk.was_synced.wait(WAIT_S)
            threading.Event().wait(0.001)
            writeback.on_tick(at(one=PIECE_BYTES))


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError), (errno.EIO, StorageError)]
)
def test_error_of_a_sync_is_raised_at_the_next_tick(
    paths: dict[str, Path], disk: Disk, number: int, error: type[Exception]
) -> None:
    def fail(_how: str, _name: str) -> None:
        raise OSError(number, os.strerror(number))

    disk.fails = fail
    before = open_fds()
    with pytest.raises(error, match=r"one\.qcow2"):
        tick_on(paths, disk)
    for thread in threading.enumerate():
        if thread.name == "writeback":
            thread.join(WAIT_S)
    assert open_fds() == before


def test_error_that_the_kernel_told_once_is_told_at_the_end_too(paths: dict[str, Path], disk: Disk) -> None:
    """It does not report the error to the same descriptor again."""

    def fail_once(how: str, _name: str) -> None:
        if how == "fdatasync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.fails = fail_once
    with Writeback(paths) as writeback:
        writeback.on_tick(at(one=PIECE_BYTES))
        assert disk.was_synced.wait(WAIT_S)
        with pytest.raises(StorageError, match="Input/output error"):
            writeback.finish()


def test_error_that_is_still_to_come_is_waited_for(paths: dict[str, Path], disk: Disk) -> None:
    """A sync is running when the end syncs the same data, which then gets no error."""
    at_the_end = threading.Event()

    def fail_late(how: str, _name: str) -> None:
        if how == "fdatasync":
            at_the_end.wait(0.2)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.fails = fail_late
    with Writeback(paths) as writeback:
        writeback.on_tick(at(one=PIECE_BYTES))
        with pytest.raises(StorageError, match="Input/output error"):
            writeback.finish()


def test_error_at_the_end_is_raised(paths: dict[str, Path], disk: Disk) -> None:
    def fail(_how: str, name: str) -> None:
        if name == "two":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.fails = fail
    with pytest.raises(StorageError, match=r"two\.qcow2"), Writeback(paths) as writeback:
        writeback.finish()


def test_images_are_closed_before_an_error_undoes_them(paths: dict[str, Path], disk: Disk) -> None:
    """Also by a sync that runs: NFS and SMB do not remove a file that is open."""
    is_syncing, may_go_on = threading.Event(), threading.Event()

    def sync(_how: str, _name: str) -> None:
        is_syncing.set()
        assert_(may_go_on.wait(WAIT_S))

    disk.fails = sync
    before = open_fds()
    with contextlib.suppress(KeyboardInterrupt), Writeback(paths) as writeback:
        writeback.on_tick(at(one=PIECE_BYTES))
        assert is_syncing.wait(WAIT_S)
        threading.Timer(0.05, may_go_on.set).start()
        raise KeyboardInterrupt
    assert open_fds() == before


def test_hanging_storage_does_not_block_an_error(
    paths: dict[str, Path], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback_module, "CLOSING_S", 0.05)
    may_go_on = threading.Event()
    disk.fails = lambda _how, _name: assert_(may_go_on.wait(WAIT_S))
    before = open_fds()
    with contextlib.suppress(KeyboardInterrupt), Writeback(paths) as writeback:
        writeback.on_tick(at(one=PIECE_BYTES))
        raise KeyboardInterrupt
    assert disk.synced == []
    may_go_on.set()
    for thread in threading.enumerate():
        if thread.name == "writeback":
            thread.join(WAIT_S)
    assert open_fds() == before


def test_image_that_is_gone_is_an_error_and_leaves_nothing_open(paths: dict[str, Path]) -> None:
    paths["two"].unlink()
    before = open_fds()
    with pytest.raises(StorageError), Writeback(paths):
        pass
    assert open_fds() == before
