"""Programs check, show and keep a configuration as the command does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup import api
from vbackup.errors import ConfigError, NoConfigError, StorageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration without faults."""
    path = tmp_path / "x.toml"
    path.write_text(f"[repository.main]\npath = '{tmp_path}/repository'\n[job.a]\n[job.a.backup]\nlevel = 'full'\n")
    return path


def test_check_has_all_faults(file: Path) -> None:
    assert api.check_config(file, is_offline=True).faults == ()
    file.write_text("[job.a]\nx = 1\n[job.b]\ny = 2\n")
    found = api.check_config(file, is_offline=True)
    assert [one.line for one in found.faults] == [1, 2, 3, 4]
    with pytest.raises(ConfigError) as caught:
        api.read_config(file)
    assert (caught.value.path, caught.value.line) == (str(file), 1)


def test_keys_are_shown_with_places(file: Path) -> None:
    shown = api.effective_config(api.read_config(file))
    (level,) = [one for one in shown if one.name == "level"]
    assert (level.value, level.place) == ("full", api.ConfigPlace(file, 5))
    assert 'level = "full"' in api.config_text(shown)
    assert f"# {file}:5" in api.config_text(shown, with_origin=True)


def test_configuration_is_kept_and_comes_back(file: Path, tmp_path: Path) -> None:
    repository = api.create_repository(tmp_path / "repository")
    config = api.read_config(file)
    assert api.keep_config(repository.path, config) is True
    assert api.keep_config(repository.path, config) is False
    [kept] = api.kept_configs(repository.path)
    assert isinstance(kept, api.KeptConfig)
    assert kept.host == api.this_host().name
    api.write_config(tmp_path / "new.toml", api.kept_config(repository.path))
    assert api.read_config(tmp_path / "new.toml") == config
    with pytest.raises(ConfigError):
        api.write_config(tmp_path / "new.toml", "")
    with pytest.raises(StorageError):
        api.kept_config(tmp_path)


def test_first_configuration_is_for_the_hosts_that_are_named() -> None:
    text = api.propose_config(["test:///default"], repository="/srv/backup")
    assert "#   test  cannot be backed up: it runs in test, not in QEMU or KVM" in text
    assert 'connect = ["test:///default"]' in text
    assert 'path = "/srv/backup"' in text


def test_schema_has_all_tables() -> None:
    assert {"repository", "target", "job", "notify", "defaults", "metrics", "report"} == set(
        api.config_schema()["properties"]
    )


def test_missing_configuration_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vbackup.config import documents

    monkeypatch.setattr(documents, "SYSTEM", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(NoConfigError):
        api.check_config()
