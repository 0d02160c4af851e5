"""What was tried for a time of a calendar is known until the next one, or a boot."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.runs import attempts
from vbackup.runs.attempts import Attempts, What

NIGHT = datetime(2026, 11, 30, 1, tzinfo=timezone.utc)
NOW = NIGHT + timedelta(minutes=7)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(attempts, "directory", lambda: tmp_path / "run")
    return tmp_path / "run" / "attempts"


def test_what_was_tried_is_known_for_that_time_that_job_and_that_state(runtime: Path, tmp_path: Path) -> None:
    tried = Attempts(tmp_path / "state", "nightly")
    assert tried.time(What.RUN, NIGHT) is None
    tried.note(What.RUN, NIGHT, NOW)
    assert tried.time(What.RUN, NIGHT) == NOW
    assert tried.time(What.BEGIN, NIGHT) is None
    assert tried.time(What.RUN, NIGHT + timedelta(days=1)) is None
    assert Attempts(tmp_path / "state", "weekly").time(What.RUN, NIGHT) is None
    assert Attempts(tmp_path / "other", "nightly").time(What.RUN, NIGHT) is None
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700


def test_another_cause_is_another_attempt(runtime: Path, tmp_path: Path) -> None:
    tried = Attempts(tmp_path, "nightly")
    tried.note(What.BEGIN, NIGHT, NOW, "STORAGE \udcff is full")
    assert tried.time(What.BEGIN, NIGHT, "STORAGE \udcff is full") == NOW
    assert tried.time(What.BEGIN, NIGHT, "STORAGE is gone") is None
    assert "full" not in next(runtime.iterdir()).read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"scheduled": "x"}'])
def test_a_file_that_is_damaged_says_nothing(runtime: Path, tmp_path: Path, text: str) -> None:
    tried = Attempts(tmp_path, "nightly")
    tried.note(What.RUN, NIGHT, NOW)
    [path] = runtime.iterdir()
    path.write_text(text)
    assert tried.time(What.RUN, NIGHT) is None


@pytest.mark.parametrize("which", ["attempts", "run"])
def test_what_somebody_else_could_have_written_is_not_believed(runtime: Path, tmp_path: Path, which: str) -> None:
    tried = Attempts(tmp_path, "nightly")
    tried.note(What.RUN, NIGHT, NOW)
    opened = {"attempts": runtime, "run": runtime.parent}[which]
    opened.chmod(0o777)
    assert tried.time(What.RUN, NIGHT) is None
    with pytest.raises(StorageError, match="Others can replace"):
        tried.note(What.RUN, NIGHT, NOW)
    opened.chmod(0o700)
    assert tried.time(What.RUN, NIGHT) == NOW


def test_a_directory_of_somebody_else_is_not_used(runtime: Path, tmp_path: Path) -> None:
    runtime.mkdir(parents=True)
    runtime.chmod(0o777)
    with pytest.raises(StorageError, match="Others can replace"):
        Attempts(tmp_path, "nightly").note(What.RUN, NIGHT, NOW)


def test_the_directory_is_one_that_a_boot_empties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert attempts.directory() == Path("/run/vbackup")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert attempts.directory() == Path("/run/user/1000/vbackup")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert attempts.directory().name == "vbackup-1000"
