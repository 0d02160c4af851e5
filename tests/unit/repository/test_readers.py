"""Backups that somebody reads are seen, by whoever wants to take them away."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.errors import BusyError, ChainError, InterruptedBySignalError
from vbackup.repository import readers
from vbackup.stop import Stop


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    directory = tmp_path / "backup"
    directory.mkdir()
    return directory


def is_free(directory: Path) -> bool:
    with readers.claimed(directory) as free:
        return free


def test_what_is_read_cannot_be_claimed(backup: Path) -> None:
    with readers.reading([backup]):
        assert not is_free(backup)
        assert readers.is_in_use(backup)
    assert is_free(backup)
    assert not readers.is_in_use(backup)


def test_several_read_at_once(backup: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with readers.reading([backup, other, backup]):
        with readers.reading([backup]):
            pass
        assert not is_free(backup)
        assert not is_free(other)


def test_reader_waits_for_the_end_of_a_claim(backup: Path) -> None:
    has_read = threading.Event()

    def read() -> None:
        with readers.reading([backup]):
            has_read.set()

    with readers.claimed(backup) as free:
        assert free
        reader = threading.Thread(target=read)
        reader.start()
        assert not has_read.wait(0.2)
    assert has_read.wait(10)
    reader.join()


def test_wait_has_a_limit_and_can_be_stopped(backup: Path) -> None:
    stop = Stop()
    with readers.claimed(backup):
        with pytest.raises(BusyError, match="is being merged"), readers.reading([backup], wait_s=0):
            pass
        stop.request(15)
        with pytest.raises(InterruptedBySignalError), readers.reading([backup], stop=stop):
            pass
    assert is_free(backup)


def test_reader_locks_the_directory_that_has_the_name(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge exchanges directories: between opening and locking, the name may pass to another."""
    flock = fcntl.flock

    def exchange_before(fd: int, kind: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        backup.rename(tmp_path / "former")
        backup.mkdir()
        flock(fd, kind)

    monkeypatch.setattr(fcntl, "flock", exchange_before)
    with readers.reading([backup]):
        assert not is_free(backup)
        assert is_free(tmp_path / "former")


def test_missing_backup_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ChainError, match="missing cannot be read: No such file"),
        readers.reading([tmp_path / "missing"]),
    ):
        pass


def test_symbolic_link_is_not_followed(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(backup)
    with pytest.raises(ChainError), readers.reading([tmp_path / "link"]):
        pass


def test_filesystem_without_locks_of_directories(backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_fd: int, _kind: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock)
    with readers.reading([backup]):
        assert is_free(backup)


def test_nothing_is_written_for_it(backup: Path) -> None:
    backup.chmod(0o500)
    before = backup.stat().st_mtime_ns
    with readers.reading([backup]):
        assert list(backup.iterdir()) == []
    assert backup.stat().st_mtime_ns == before


def test_what_changed_before_the_lock_is_read_again(backup: Path, tmp_path: Path) -> None:
    """As when a merge removes the backup that the chain began with."""
    answers: Iterator[list[Path]] = iter([[backup, tmp_path / "removed"], [backup], [backup]])
    with readers.unchanged(lambda: next(answers), lambda chain: chain) as chain:
        assert chain == [backup]
        assert not is_free(backup)
    with pytest.raises(ChainError), readers.unchanged(lambda: [tmp_path / "gone"], lambda chain: chain):
        pass


def test_more_backups_than_files_may_be_open_can_be_read(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    directories = [tmp_path / str(number) for number in range(100)]
    for directory in directories:
        directory.mkdir()
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, before[1]))
    try:
        with readers.reading(directories):
            assert all(readers.is_in_use(directory) for directory in directories)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_users_are_named_by_their_commands(backup: Path, tmp_path: Path) -> None:
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[2], os.O_RDONLY), fcntl.LOCK_SH); print(); input()"
    (tmp_path / "vbackup").write_text(hold)
    argv = [sys.executable, str(tmp_path / "vbackup"), "mount", str(backup)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert readers.users(backup) == f"process {process.pid} (vbackup mount {backup})"
        assert not is_free(backup)
        process.communicate(b"\n")
    assert readers.users(backup) == "a restore, a verify, a mount or a session"
    assert readers.users(tmp_path / "missing") == "a restore, a verify, a mount or a session"


@pytest.mark.parametrize("text", ["", "1: FLOCK\n", "1: FLOCK ADVISORY READ x 0:0:0 0 EOF\n"])
def test_users_are_not_known_where_the_kernel_does_not_tell(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "locks").write_text(text)
    monkeypatch.setattr(readers, "_LOCKS", tmp_path / "locks")
    assert readers.users(backup) == "a restore, a verify, a mount or a session"
