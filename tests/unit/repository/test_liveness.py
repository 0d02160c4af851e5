"""Where a lock does not lock, the journals of unfinished backups keep others out as long as their writers live."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder, backup
from vbackup.errors import BusyError
from vbackup.process import Process
from vbackup.repository import liveness
from vbackup.repository.journal import Journal
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.repository.writer import DEAD_S, Writer
from vbackup.stop import Stop

DRAFT = backup(1)


@pytest.fixture
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """flock(2) says that it locks, and does not."""
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _operation: None)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def living(child: subprocess.Popen[bytes]) -> Writer:
    process = Process.of(child.pid)
    assert process is not None
    return replace(Writer.this(), process=process)


def elsewhere(writer: Writer) -> Writer:
    process = replace(writer.process, boot_id="00000000-0000-4000-8000-000000000000")
    return replace(writer, process=process, host="other", machine_id="other")


def begin(repo: Repository, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another process has begun a backup."""
    stage = repo.stage_path(UUID, DRAFT.id)
    stage.mkdir(parents=True)
    with monkeypatch.context() as patch, Journal(stage) as written:
        patch.setattr(Writer, "this", lambda: writer)
        written.begin(DRAFT)
    return stage


@contextmanager
def refused(said: str) -> Iterator[None]:
    with pytest.raises(BusyError, match=said):
        yield


def take(repo: Repository, **more: object) -> None:
    with repo.lock(UUID, **more):  # type: ignore[arg-type]
        pass


@pytest.mark.usefixtures("no_lock")
def test_living_writer_keeps_others_out_until_it_is_dead(
    repo: Repository, living: Writer, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = begin(repo, living, monkeypatch)
    for presume_dead in (False, True):
        with refused(f"Backup {DRAFT.id} of domain {UUID} is being made by process {child.pid} of this host; wait"):
            take(repo, presume_dead=presume_dead)
    with refused("is being made by process"):
        take(repo, wait=LockWait(0.1, Recorder(), Stop()))
    repo.refuse_live_writers(UUID, but=DRAFT.id)
    assert stage.exists()
    child.kill()
    child.wait()
    take(repo)


def test_writer_on_another_host_keeps_others_out_until_it_is_silent_or_said_to_be_dead(
    repo: Repository, living: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the lock works on this host: each host may have separate locks."""
    stage = begin(repo, elsewhere(living), monkeypatch)
    with refused("on host other, which was last seen at work"):
        take(repo)
    take(repo, presume_dead=True)
    take_at = liveness.now(stage.parent / "lock") - DEAD_S - 1
    os.utime(stage / "journal", (take_at, take_at))
    take(repo)


def test_clock_is_that_of_the_file_system(repo: Repository, living: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's clock is a day ahead of this host's, and touches are by the server's."""
    stage = begin(repo, elsewhere(living), monkeypatch)
    ahead = (stage / "journal").stat().st_mtime + 86400
    monkeypatch.setattr(liveness, "now", lambda _path: ahead)
    take(repo)
    os.utime(stage / "journal", (ahead - 10, ahead - 10))
    with refused("last seen at work 10 s ago"):
        take(repo)


@pytest.mark.usefixtures("no_lock")
def test_copy_of_a_stage_has_no_writer(repo: Repository, living: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(repo, living, monkeypatch)
    shutil.copytree(repo.path, repo.path.parent / "copy")
    take(Repository.open(repo.path.parent / "copy"))


@pytest.mark.usefixtures("no_lock")
def test_stage_without_a_journal_may_have_just_been_made(repo: Repository) -> None:
    stage = repo.stage_path(UUID, DRAFT.id)
    stage.mkdir(parents=True)
    with refused("a vbackup that has not written its journal yet"):
        take(repo)
    take(repo, presume_dead=True)
    os.utime(stage, (1, 1))
    take(repo)


def test_stage_without_a_journal_is_of_a_dead_run_where_the_lock_works(repo: Repository) -> None:
    repo.stage_path(UUID, DRAFT.id).mkdir(parents=True)
    take(repo)


@pytest.mark.usefixtures("no_lock")
def test_stage_that_is_a_file_a_link_or_damaged_keeps_nobody_out(repo: Repository, tmp_path: Path) -> None:
    stage = repo.stage_path(UUID, DRAFT.id)
    repo.directory(UUID, DRAFT.id).mkdir(parents=True)  # so that the domain's directory stays
    stage.touch()
    take(repo)
    stage.unlink()
    stage.symlink_to(tmp_path)
    take(repo)
    stage.unlink()
    stage.mkdir()
    (stage / "journal").write_text("{}\n")
    take(repo)


def test_look_at_a_writer_takes_no_lock_and_writes_nothing(
    repo: Repository, living: Writer, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that wants the lock at that moment would fail with status 8."""
    begin(repo, living, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in repo.path.rglob("*")}
    monkeypatch.setattr(fcntl, "flock", lambda *_arguments: pytest.fail("The lock was taken."))
    assert repo.running(UUID) == [DRAFT.id]
    assert {path: path.stat().st_mtime_ns for path in repo.path.rglob("*")} == before
    child.kill()
    child.wait()
    assert (repo.running(UUID), repo.unfinished(UUID)) == ([], [DRAFT.id])


def test_thread_of_this_process_is_at_work_while_it_has_the_lock(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work of another thread is not mistaken for what an earlier attempt of this process left."""
    begin(repo, Writer.this(), monkeypatch)
    assert repo.running(UUID) == []
    with repo.lock(UUID):
        assert repo.running(UUID) == [DRAFT.id]
    assert repo.running(UUID) == []


def test_writer_elsewhere_seems_at_work_until_it_is_silent(
    repo: Repository, living: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = begin(repo, elsewhere(living), monkeypatch)
    assert repo.running(UUID) == [DRAFT.id]
    os.utime(stage / "journal", (1, 1))
    assert repo.running(UUID) == []


def test_nobody_is_at_work_on_what_is_no_journal_or_a_copy(
    repo: Repository, living: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = begin(repo, living, monkeypatch)
    shutil.copytree(repo.path, repo.path.parent / "copy")
    assert Repository.open(repo.path.parent / "copy").running(UUID) == []
    (stage / "journal").write_text("{}\n")
    assert repo.running(UUID) == []
    (stage / "journal").unlink()
    assert repo.running(UUID) == []
