"""The configuration is kept in the repository, for the day on which the machine is gone."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.unit.config.conftest import Load
from tests.unit.config.test_loading import WHOLE
from vbackup.config import keeping, loading
from vbackup.errors import ConfigError, StorageError

NOW = datetime(2026, 11, 30, 1, tzinfo=timezone.utc)


def test_recovered_configuration_is_equal(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    repository = tmp_path / "repository"
    repository.mkdir()
    assert keeping.keep(repository, config, host="hv1", now=NOW) is True
    text = keeping.kept(repository)
    assert text.startswith(
        "# The configuration of vbackup on hv1, as it was when a run used it (2026-11-30T01:00:00Z)."
    )
    new = tmp_path / "etc" / "vbackup.toml"
    keeping.write_new(new, text)
    assert loading.read([new]) == config
    assert stat.S_IMODE((repository / "config.toml").stat().st_mode) == 0o600
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_it_is_written_only_if_it_has_changed(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    keeping.keep(tmp_path, config, host="hv1")
    before = (tmp_path / "config.toml").stat()
    assert keeping.keep(tmp_path, config, host="other") is False
    after = (tmp_path / "config.toml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    changed = load(WHOLE.replace("keep-daily = 7", "keep-daily = 8")).config
    assert keeping.keep(tmp_path, changed, host="hv1") is True
    assert "keep-daily = 8" in keeping.kept(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "vbackup.toml"]


def test_what_is_planted_in_its_place_is_replaced(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    repository = tmp_path / "repository"
    repository.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (repository / "config.toml").symlink_to(victim)
    keeping.keep(repository, config, host="hv1\n[job.x]")
    assert victim.read_text() == "precious"
    assert not (repository / "config.toml").is_symlink()
    assert "\n[job.x]" not in keeping.kept(repository)
    (repository / "config.toml").write_bytes(b"\xff" * 100)
    assert keeping.keep(repository, config, host="hv1") is True


def test_repository_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run of 'vbackup run' has kept one there"):
        keeping.kept(tmp_path)


@pytest.mark.parametrize("data", [b"\xff", b"a = ", b"[job.a]\nx = 1\n"])
def test_damaged_one_is_not_given_away(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(data)
    with pytest.raises(StorageError, match="is damaged"):
        keeping.kept(tmp_path)


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    with pytest.raises(StorageError, match="cannot be read"):
        keeping.kept(tmp_path)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").write_bytes(b"#" * 2**21)
    with pytest.raises(StorageError, match="cannot be read"):
        keeping.kept(tmp_path)


def test_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "vbackup.toml"
    path.write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for there in (path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="never overwritten"):
            keeping.write_new(there, "theirs")
    assert path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_repository_that_cannot_be_written_is_an_error(load: Load, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="keep the configuration"):
        keeping.keep(tmp_path / "none", load(WHOLE).config, host="hv1")
