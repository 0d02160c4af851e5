"""One process works on a domain at a time; another one is refused or waits, and no lock outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder
from vbackup.errors import BusyError, InterruptedBySignalError, StorageError
from vbackup.repository import lock
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop, on_signals

OTHER = "f0000000-0000-4000-8000-000000000002"


def test_lock_keeps_others_out(repo: Repository) -> None:
    with repo.lock(UUID):
        with pytest.raises(BusyError, match=f"Another vbackup is working on domain {UUID}"), repo.lock(UUID):
            pass
        with repo.lock(OTHER):
            pass


def test_domain_that_is_locked_is_told_by_its_name(repo: Repository, recorder: Recorder) -> None:
    (repo.path / UUID).mkdir()
    repo.remember_name(UUID, "web")
    with repo.lock(UUID):
        with pytest.raises(BusyError, match="Another vbackup is working on domain web in"), repo.lock(UUID):
            pass
        wait = LockWait(0, recorder, Stop(), name="new name")
        with pytest.raises(BusyError, match="on domain new name in"), repo.lock(UUID, wait=wait):
            pass


def test_lock_is_free_again_after_its_block(repo: Repository) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"):
            fail_inside(repo)


def fail_inside(repo: Repository) -> None:
    with repo.lock(UUID):
        raise ValueError("inside")


HOLDER = """
import sys
from pathlib import Path
from vbackup.repository.repository import Repository

OTHER = "f0000000-0000-4000-8000-000000000002"
with Repository.open(Path(sys.argv[1])).lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_of_another_process_is_respected_and_ends_with_its_death(repo: Repository) -> None:
    argv = [sys.executable, "-c", HOLDER, os.fspath(repo.path), UUID]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError):
            fail_inside(repo)
        holder.kill()
        holder.wait()
        with pytest.raises(ValueError, match="inside"):
            fail_inside(repo)


def test_lock_ends_in_no_child(repo: Repository) -> None:
    """qemu-img and the like must not hold it on."""
    with repo.lock(UUID):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(ValueError, match="inside"):
        fail_inside(repo)
    child.communicate(b"\n")


def take(repo: Repository, wait: LockWait) -> None:
    with repo.lock(UUID, wait=wait):
        pass


@contextmanager
def holder(repo: Repository) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the domain's lock."""
    argv = [sys.executable, "-c", HOLDER, os.fspath(repo.path), UUID]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


class Acting(Recorder):
    """A reporter that does something when the wait is reported."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def step(self, message: str) -> None:
        super().step(message)
        self._act()


def test_free_lock_is_taken_without_a_word(repo: Repository) -> None:
    recorder = Recorder()
    take(repo, LockWait(60.0, recorder, Stop()))
    assert recorder.steps == []


@pytest.mark.parametrize("limit_s", [0.0, 0.1])
def test_wait_that_is_over_is_busy(repo: Repository, limit_s: float) -> None:
    recorder = Recorder()
    with repo.lock(UUID), pytest.raises(BusyError, match="Another vbackup is working"):
        take(repo, LockWait(limit_s, recorder, Stop()))
    told = f"waiting up to {limit_s:g} s for it to end"
    assert [told in step for step in recorder.steps] == ([True] if limit_s else [])


def test_wait_ends_when_the_holder_dies(repo: Repository) -> None:
    """However it dies, its lock goes with it."""
    with holder(repo) as process:
        reporter = Acting(process.kill)
        take(repo, LockWait(60.0, reporter, Stop()))
        assert process.wait() < 0
    assert len(reporter.steps) == 1


def test_wait_ends_when_a_first_backup_failed_and_took_the_directory_along(repo: Repository) -> None:
    with holder(repo) as process:
        assert process.stdin is not None
        take(repo, LockWait(60.0, Acting(process.stdin.close), Stop()))
        assert process.wait() == 0
    assert repo.uuids() == []


def test_signal_ends_the_wait_within_a_second(repo: Repository) -> None:
    with repo.lock(UUID), on_signals(Stop()) as stop:
        begun = time.monotonic()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(InterruptedBySignalError):
            take(repo, LockWait(60.0, Recorder(), stop))
        timer.join()
        assert time.monotonic() - begun < 1.1


def test_directory_that_is_a_link_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "domain").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a symbolic link, which could lead out of the repository"):
        lock.take(tmp_path / "domain", UUID)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_lock_file_that_was_replaced_is_locked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes the directory between opening and locking its file."""
    flock, attempts = fcntl.flock, 0

    def replace_and_lock(fd: int, operation: int) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            (tmp_path / "domain" / "lock").unlink()
            (tmp_path / "domain" / "lock").touch()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    fd = lock.take(tmp_path / "domain", UUID)
    assert attempts == 2
    assert os.path.samestat(os.fstat(fd), (tmp_path / "domain" / "lock").stat())
    lock.release(fd)


@pytest.mark.parametrize("works", [True, False])
def test_threads_of_a_process_exclude_each_other(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Also where flock() does nothing."""
    if not works:
        monkeypatch.setattr(fcntl, "flock", lambda _fd, _operation: None)
    assert not lock.is_held_here(repo.path / UUID)
    for _ in range(2):
        with repo.lock(UUID):
            assert lock.is_held_here(repo.path / UUID)
            with ThreadPoolExecutor(1) as pool, pytest.raises(BusyError, match="Another vbackup is working on domain"):
                pool.submit(take, repo, LockWait(0.0, Recorder(), Stop())).result(10)
            assert lock.is_held_here(repo.path / UUID)
    assert lock._held == {}


def test_lock_that_its_check_refuses_is_free_again(tmp_path: Path) -> None:
    def refuse() -> None:
        raise BusyError("somebody writes without a lock")

    for _ in range(2):
        with pytest.raises(BusyError, match="without a lock"):
            lock.take(tmp_path / "domain", UUID, check=refuse)
    lock.release(lock.take(tmp_path / "domain", UUID))
    assert lock._held == {}


def test_lock_that_works_is_told_from_one_that_does_nothing(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert repo.locks()
    with repo.lock(UUID):
        assert repo.locks(UUID)
        monkeypatch.setattr(fcntl, "flock", lambda _fd, _operation: None)
        assert not repo.locks(UUID)
    assert not repo.locks()


def test_repository_is_not_made_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StorageError, match=r"cannot lock files \(flock: No locks available\)"):
        Repository.create(tmp_path / "repo")
    assert list((tmp_path / "repo").iterdir()) == []
