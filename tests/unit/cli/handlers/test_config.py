"""``vbackup config``: what it prints is valid, what it writes is new, and its exit status says whether all is well."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomllib
from jsonschema import Draft7Validator

from tests.unit.operations.test_config_check import FakeHost
from vbackup.api import keep_config, read_config
from vbackup.config import keeping
from vbackup.model import HostIdentity
from vbackup.operations import config_check, config_init

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture(autouse=True)
def _libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Host(FakeHost):
        def __init__(self, uri: str | None) -> None:
            super().__init__(uri or "qemu:///system", "web", "db")
            for handle in self.handles:
                handle.capacity_bytes = lambda _dev: 1024**3  # type: ignore[attr-defined]

        def __enter__(self) -> Host:
            return self

        def __exit__(self, *_exc: object) -> None:
            self.close()

    monkeypatch.setattr(config_check, "Host", Host)
    monkeypatch.setattr(config_init, "Host", Host)


@pytest.fixture
def file(tmp_path: Path, repository: Path) -> Path:
    """A configuration that can be used."""
    path = tmp_path / "my.toml"
    path.write_text(
        f"[repository.main]\npath = '{repository}'\n\n[job.nightly]\ndomains = ['web', 'd*']\nat = '01:00'\n"
        "notify = []\n[job.nightly.prune]\nkeep-daily = 7\n"
    )
    return path


def test_first_configuration_can_be_used_as_it_is(command: Command, repository: Path, tmp_path: Path) -> None:
    printed = command("config", "init", "-r", repository).stdout
    path = tmp_path / "etc" / "vbackup.toml"
    wrote = command("config", "init", "-r", repository, "--output", path)
    assert f"Wrote {path}." in wrote.stdout
    assert path.read_text() == printed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    checked = command("config", "check", "--config", path)
    assert "Job nightly: 2 domains (web, db) to main, next on " in checked.stdout
    assert checked.stdout.endswith("The configuration is valid and can be used.\n")
    assert command("config", "init", "-r", repository, "--output", "-").stdout == printed
    refused = command("config", "init", "--output", path, status=2)
    assert "is never overwritten" in refused.stderr
    assert path.read_text() == printed


def test_check_prints_every_fault_with_its_place(command: Command, file: Path) -> None:
    with file.open("a") as more:
        more.write("keep-dayly = 1\n[job.b]\ndomains = ['x*']\n[notify.a]\nping = { file = '/nowhere' }\n")
    done = command("config", "check", "--config", file, status=2)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{file}:10: Unknown key 'keep-dayly' in [job.nightly.prune]; the closest is 'keep-daily'."
    assert lines[1] == f"{file}:12: Job b: 'x*' matches no domain."
    assert lines[-1] == (
        "1 fault; nothing is run with this configuration. 3 more places where runs would fail as things are now."
    )
    assert command("config", "check", "--config", file, "-q", status=2).stdout == done.stdout
    document = command("config", "check", "--config", file, "--json", status=2).document
    assert document["valid"] is False
    assert [one["line"] for one in document["faults"]] == [10, 12, 12, 14]
    assert document["faults"][0]["message"].startswith("Unknown key")


def test_check_of_a_good_one_has_its_jobs(command: Command, file: Path) -> None:
    document = command("config", "check", "--config", file, "--json").document
    assert document["valid"] is True
    assert document["files"] == [str(file)]
    (job,) = document["jobs"]
    assert job["domains"] == [{"name": "web", "host": "qemu:///system"}, {"name": "db", "host": "qemu:///system"}]
    assert command("config", "check", "--config", file, "-q").stdout == ""
    offline = command("config", "check", "--config", file, "--offline").stdout
    assert offline == "The configuration is valid.\n"


def test_check_says_of_the_world_that_runs_would_fail(command: Command, file: Path) -> None:
    file.write_text(file.read_text().replace("'d*'", "'x*'"))
    lines = command("config", "check", "--config", file, status=2).stdout.splitlines()
    assert (lines[0], lines[-1]) == (
        f"{file}:5: Job nightly: 'x*' matches no domain.",
        "1 place where runs would fail as things are now; the configuration itself is valid.",
    )


@pytest.mark.parametrize("words", [(), ("--offline",)])
def test_configuration_without_a_job_is_one_that_run_refuses(
    command: Command, file: Path, words: tuple[str, ...]
) -> None:
    file.write_text("")
    said = command("config", "check", *words, "--config", file, status=2).stdout.splitlines()
    assert said[-1] == "1 fault; nothing is run with this configuration."
    refused = command("run", "--config", file, status=2).stderr
    assert said[0].removeprefix(f"{file}: ") in refused


def test_broken_toml_is_status_two_with_file_and_line(command: Command, file: Path) -> None:
    file.write_text("[repository.main]\npath = \n")
    for words in (["config", "show"], ["run"]):
        done = command(*words, "--config", file, status=2)
        assert f"vbackup: {file}:2: This is not TOML: Invalid value." in done.stderr
        assert done.stdout == ""
    error = command("config", "show", "--config", file, "--json", status=2).document
    assert (error["code"], error["details"]["line"]) == ("CONFIG", 2)


def test_option_stands_anywhere_and_in_the_environment(
    command: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = command("config", "show", "--config", file).stdout
    assert command("--config", file, "config", "show").stdout == expected
    assert command("config", "--config", file, "show").stdout == expected
    monkeypatch.setenv("VBACKUP_CONFIG", str(file))
    assert command("config", "show").stdout == expected
    command("config", "show", "--config", "/nowhere", status=2)
    command("list", "--config", file, "-r", file.parent / "repository")  # which does not need it


def test_without_a_configuration_it_is_said_how_to_begin(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbackup.config import documents

    monkeypatch.setattr(documents, "SYSTEM", tmp_path / "none")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    assert "'vbackup config init' writes one" in command("config", "check", status=2).stderr


def test_show_is_toml_with_origins(command: Command, file: Path) -> None:
    shown = command("config", "show", "--config", file, "--origin").stdout
    assert f'at = ["01:00"]  # {file}:6' in shown
    assert "# level: auto (default)" in shown
    assert tomllib.loads(shown)["job"]["nightly"]["prune"] == {"keep-daily": 7}
    document = command("config", "show", "--config", file, "--json").document
    by_name = {(*one["table"], one["name"]): one for one in document["keys"]}
    assert by_name["job", "nightly", "prune", "keep-daily"] == {
        "table": ["job", "nightly", "prune"],
        "name": "keep-daily",
        "value": 7,
        "default": None,
        "path": str(file),
        "line": 9,
    }
    assert by_name["job", "nightly", "backup", "level"]["default"] == "auto"


def test_schema_is_one_for_editors(command: Command, file: Path) -> None:
    schema = json.loads(command("config", "schema").stdout)
    Draft7Validator.check_schema(schema)
    assert list(Draft7Validator(schema).iter_errors(tomllib.loads(file.read_text()))) == []


def test_configuration_comes_back_from_the_repository(command: Command, file: Path, repository: Path) -> None:
    refused = command("config", "recover", "-r", repository, status=7)
    assert "no run of 'vbackup run' has kept one there" in refused.stderr
    config = read_config(file)
    assert keep_config(repository, config) is True
    new = file.with_name("new.toml")
    command("config", "recover", "-r", repository, "--output", new)
    assert read_config(new) == config
    assert command("config", "recover", "-r", repository).stdout == new.read_text()
    command("config", "recover", "-r", repository, "--output", new, status=2)
    command("config", "recover", "-r", file.parent / "none", status=7)
    # The file belongs to the repository.
    command("check", "-r", repository)


def test_configurations_of_several_hosts_are_listed_and_one_is_taken(
    command: Command, file: Path, repository: Path
) -> None:
    config = read_config(file)
    assert "has kept a configuration" in command("config", "recover", "-r", repository, "--list").stdout
    for name, number in (("hv1", "1"), ("hv2", "2")):
        keeping.keep(repository, config, host=HostIdentity(name, number * 32))
    listed = command("config", "recover", "-r", repository, "--list").stdout.splitlines()
    assert listed[0].split() == ["HOST", "WRITTEN", "FILE"]
    assert [line.split()[0] for line in listed[1:]] == ["hv1", "hv2"]
    refused = command("config", "recover", "-r", repository, status=2)
    assert "has configurations of 2 hosts: hv1, hv2. Say with --host which one." in refused.stderr
    assert "vbackup on hv2," in command("config", "recover", "-r", repository, "--host", "hv2").stdout


def test_what_prints_toml_prints_no_json(command: Command, repository: Path) -> None:
    for words in (["init"], ["recover", "-r", os.fspath(repository)]):
        assert "This prints TOML: leave out --json." in command("config", *words, "--json", status=2).stderr
