"""Marks of offline backups: set and cleared, with one holder; a user who cannot set them can still back up."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from vbackup.errors import BusyError
from vbackup.hooks import marks
from vbackup.hooks.marks import Process, live_mark, offline_mark


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run" / "offline"
    monkeypatch.setattr(marks, "DIRECTORY", path)
    return path


@contextmanager
def other_process() -> Iterator[Process]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        found = Process.of(process.pid)
        assert found is not None
        yield found


def write(path: Path, process: Process) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {"pid": process.pid, "start_ticks": process.start_ticks, "boot_id": process.boot_id}
    path.write_text(json.dumps({**members, "since": "2026-11-24T10:15:00Z"}))


def test_mark_is_there_in_the_block_only(directory: Path) -> None:
    assert live_mark(UUID) is None
    with offline_mark(UUID):
        mark = live_mark(UUID)
        assert mark is not None
        assert mark.process == Process.of(os.getpid())
        assert mark.since.tzinfo is not None
        assert [path.name for path in directory.iterdir()] == [UUID]
    assert list(directory.iterdir()) == []


def test_mark_goes_with_a_failure(directory: Path) -> None:
    with suppress(ZeroDivisionError), offline_mark(UUID):
        raise ZeroDivisionError
    assert list(directory.iterdir()) == []


def test_mark_is_for_its_owner_only(directory: Path) -> None:
    before = os.umask(0)
    try:
        with offline_mark(UUID):
            modes = [path.stat().st_mode & 0o777 for path in (directory.parent, directory, directory / UUID)]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o700, 0o600]


def test_second_offline_backup_at_once_is_busy(directory: Path) -> None:
    with other_process() as other:
        write(directory / UUID, other)
        with pytest.raises(BusyError, match=f"process {other.pid}"), offline_mark(UUID):
            pytest.fail("both have it")
        mark = live_mark(UUID)
        assert mark is not None
        assert mark.process == other


def test_mark_of_a_process_that_ended_is_taken_over(directory: Path) -> None:
    with other_process() as other:
        write(directory / UUID, other)
        assert live_mark(UUID) is not None
    assert live_mark(UUID) is None
    with offline_mark(UUID):
        mark = live_mark(UUID)
        assert mark is not None
        assert mark.process.pid == os.getpid()


def test_mark_of_somebody_else_is_not_cleared(directory: Path) -> None:
    with other_process() as other:
        with offline_mark(UUID):
            write(directory / UUID, other)
        assert (directory / UUID).exists()


def test_user_who_may_not_goes_without(directory: Path) -> None:
    directory.parent.touch()  # like a directory without permission, which would not stop root
    with offline_mark(UUID):
        assert live_mark(UUID) is None
    assert directory.parent.is_file()


def test_mark_that_was_taken_away_is_no_failure(directory: Path) -> None:
    with offline_mark(UUID):
        (directory / UUID).unlink()
        directory.rmdir()
        directory.parent.rmdir()
        directory.parent.touch()


def test_mark_in_the_way_is_no_failure(directory: Path) -> None:
    (directory / UUID / "x").mkdir(parents=True)
    with offline_mark(UUID):
        pass
    assert [path.name for path in directory.iterdir()] == [UUID]


def test_mark_within_a_mark_changes_nothing(directory: Path) -> None:
    with offline_mark(UUID, marks.Work.RESTORE):
        text = (directory / UUID).read_text()
        assert json.loads(text)["work"] == "restore"
        with offline_mark(UUID):
            assert (directory / UUID).read_text() == text
        assert (directory / UUID).read_text() == text
    assert list(directory.iterdir()) == []


def test_mark_of_a_session_names_it_to_others(directory: Path) -> None:
    with other_process() as other:
        with offline_mark(UUID):
            marks.hand_over(UUID, other, session="20261129T101500Z-0a1b2c")
        mark = live_mark(UUID)
        assert mark is not None
        assert (mark.process, mark.session) == (other, "20261129T101500Z-0a1b2c")
        with pytest.raises(BusyError, match="Pull session 20261129T101500Z-0a1b2c has the disks"), offline_mark(UUID):
            raise AssertionError("the block was entered")
    assert live_mark(UUID) is None  # the process has ended


def test_mark_of_somebody_else_is_not_handed_over(directory: Path) -> None:
    with other_process() as other, other_process() as daemon:
        write(directory / UUID, other)
        marks.hand_over(UUID, daemon, session="20261129T101500Z-0a1b2c")
        mark = live_mark(UUID)
        assert mark is not None
        assert (mark.process, mark.session) == (other, None)
