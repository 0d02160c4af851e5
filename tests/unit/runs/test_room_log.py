"""The log says how fast a filesystem fills up, and never more than it knows."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.runs import room_log
from vbackup.runs.room_log import INTERVAL, MAX_ENTRIES, Entry, RoomLog, growth_bytes_day

NOW = datetime(2026, 11, 30, 9, 0, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def entry(days: float, used_bytes: int, size_bytes: int = 1000) -> Entry:
    return Entry(NOW + days * DAY, used_bytes, size_bytes)


@pytest.fixture
def log(tmp_path: Path) -> RoomLog:
    return RoomLog(tmp_path / "state", str(tmp_path / "repo"))


def test_without_a_log_there_are_no_entries(log: RoomLog) -> None:
    assert log.read() == []
    assert not log.state.exists()


def test_what_was_noted_is_read_again_and_is_private(log: RoomLog) -> None:
    log.note(entry(0, 100))
    log.note(entry(1, 200))
    assert log.read() == [entry(0, 100), entry(1, 200)]
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.state.stat().st_mode) == 0o700


def test_entries_are_hours_apart(log: RoomLog) -> None:
    log.note(entry(0, 100))
    log.note(Entry(NOW + INTERVAL - timedelta(seconds=1), 200, 1000))
    assert log.read() == [entry(0, 100)]


def test_the_oldest_entries_go(log: RoomLog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ENTRIES >= 100
    monkeypatch.setattr(room_log, "MAX_ENTRIES", 3)
    for day in range(5):
        log.note(entry(day, day))
    assert [one.used_bytes for one in log.read()] == [2, 3, 4]


def test_entries_of_a_clock_that_was_wrong_go(log: RoomLog) -> None:
    log.note(entry(365, 900))
    log.note(entry(0, 100))
    assert log.read() == [entry(0, 100)]


def test_two_repositories_have_two_logs_and_one_has_one_by_any_path(log: RoomLog, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "link").symlink_to("repo")
    assert RoomLog(log.state, str(tmp_path / "link")).path == log.path
    assert RoomLog(log.state, str(tmp_path / "other")).path != log.path


@pytest.mark.parametrize("text", ["", "[]", '{"entries": [{"time": 1e99, "used_bytes": 1, "size_bytes": 1}]}', "\xff"])
def test_a_damaged_log_counts_as_none(log: RoomLog, text: str) -> None:
    log.note(entry(0, 100))
    log.path.write_bytes(text.encode("latin-1"))
    assert log.read() == []
    log.note(entry(1, 200))
    assert log.read() == [entry(1, 200)]


def test_a_state_that_cannot_be_written_is_said(log: RoomLog) -> None:
    log.state.write_text("a file")
    with pytest.raises(StorageError):
        log.note(entry(0, 100))


def test_growth_is_the_line_that_fits_best() -> None:
    assert growth_bytes_day([entry(0, 100), entry(1, 150), entry(2, 200), entry(4, 300)]) == pytest.approx(50.0)
    assert growth_bytes_day([entry(0, 300), entry(2, 100)]) == pytest.approx(-100.0)


def test_growth_is_not_known_from_little() -> None:
    assert growth_bytes_day([]) is None
    assert growth_bytes_day([entry(0, 100)]) is None
    assert growth_bytes_day([entry(0, 100), entry(1.9, 500)]) is None


def test_what_was_before_the_filesystem_was_enlarged_does_not_count() -> None:
    entries = [entry(0, 100, 500), entry(5, 900, 1000), entry(6, 910, 1000), entry(7, 920, 1000)]
    assert growth_bytes_day(entries) == pytest.approx(10.0)
