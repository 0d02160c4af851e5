"""A file is synced now and then while it is written, and no error of that is lost."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from vbackup import files
from vbackup.images import storing
from vbackup.images.storing import Storing


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    made: list[Path] = []
    monkeypatch.setattr(files, "fsync", made.append)
    return made


def test_sync_begins_when_enough_was_written_and_at_the_end(tmp_path: Path, syncs: list[Path]) -> None:
    with Storing(tmp_path / "file") as one:
        one.some(storing.PIECE_BYTES - 1)
        assert syncs == []
        one.some(storing.PIECE_BYTES)
        one.some(storing.PIECE_BYTES + 1)
        one.all()
    assert syncs == [tmp_path / "file"] * 2


def test_slow_storage_gets_one_sync_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, made = threading.Event(), []

    def slow(path: Path) -> None:
        made.append(path)
        go_on.wait(30)

    monkeypatch.setattr(files, "fsync", slow)
    with Storing(tmp_path / "file") as one:
        for number in range(1, 10):
            one.some(number * storing.PIECE_BYTES)
        go_on.set()
    assert len(made) == 1


def test_error_of_an_early_sync_is_raised_although_a_later_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [OSError(errno.ENOSPC, "No space left on device")]

    def fsync(_path: Path) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(files, "fsync", fsync)
    one = Storing(tmp_path / "file")
    one.some(storing.PIECE_BYTES)
    one.all()
    with pytest.raises(OSError, match="No space left"), one:
        pass


def test_error_in_the_block_comes_before_those_of_the_syncs(tmp_path: Path) -> None:
    def fail() -> None:
        with Storing(tmp_path / "missing") as one:
            one.all()
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()
