"""A program asks whether everything is backed up without a connection."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.builders import backup, commit
from vbackup import api
from vbackup.api import documents
from vbackup.errors import ConfigError
from vbackup.repository.repository import Repository


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    commit(Repository.create(tmp_path / "repo"), backup(1))
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path / "state"))
    path = tmp_path / "vbackup.toml"
    path.write_text(f'[repository.main]\npath = "{tmp_path}/repo"\n[job.nightly]\nrepository = "main"\n')
    path.chmod(0o600)
    return path


def test_the_state_of_a_configuration(config: Path) -> None:
    found = api.status(api.StatusRequest(is_offline=True), config=config)
    assert [one.name for one in found.jobs] == ["nightly"]
    assert documents.overview(found)["host"] == found.host
    assert api.status_sentence(found).startswith("Everything is backed up: 1 domain, the oldest ")
    assert api.nagios_line(found).startswith("VBACKUP OK - 1 of 1 domains")
    assert b"vbackup_domain_backups" in api.metrics_text(found)


def test_the_state_of_a_repository(tmp_path: Path, config: Path) -> None:
    assert config.exists()
    found = api.status(repository=tmp_path / "repo")
    assert found.jobs == ()
    api.write_metrics(tmp_path / "x.prom", found)
    assert (tmp_path / "x.prom").read_bytes() == api.metrics_text(found)


def test_a_configuration_that_is_broken_is_an_error(config: Path) -> None:
    config.write_text("[job")
    with pytest.raises(ConfigError):
        api.status(config=config)
    assert api.nagios_unknown("x") == "VBACKUP UNKNOWN - x"
