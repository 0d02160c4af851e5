"""``vbackup schedule`` says what it did, and what is left to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vbackup.cli.handlers import schedule as handler
from vbackup.schedule import systemd

if TYPE_CHECKING:
    from tests.conftest import Command

CONFIG = """
[repository.main]
path = "/srv/backup"

[job.nightly]
at = "01:30"
notify = ["ops"]

[job.by-hand]

[notify.ops]
webhook = { credential = "ops-url" }
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vbackup.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def test_schedule_is_installed_listed_and_removed(command: Command, root: Path, config: Path) -> None:
    where = ("--config", config, "--root", root, "--with", "systemd")
    done = command("schedule", "install", *where)
    assert done.status == 0
    assert done.stdout.startswith("nightly: runs by itself, next at ")
    assert "/etc/credstore/ops-url does not exist" in done.stderr
    assert command("schedule", "install", *where).stdout.splitlines()[0].endswith(" (as before).")
    listed = command("schedule", "list", *where).stdout.splitlines()
    assert listed[0].split() == ["JOB", "BY", "NEXT", "RUN", "TIMER", "STATE"]
    assert listed[1].split()[:2] == ["nightly", "systemd"]
    assert listed[1].endswith("installed")
    assert listed[2].split() == ["by-hand", "-", "-", "-", "not", "installed"]
    config.write_text(CONFIG.replace("01:30", "02:00"))
    assert "out of date: run 'vbackup schedule install'" in command("schedule", "list", *where).stdout
    assert command("schedule", "remove", *where).stdout == "nightly: runs by itself no more.\n"
    assert command("schedule", "remove", *where).stdout == "Nothing was installed.\n"
    assert command("schedule", "remove", "nightly", *where).stdout == "nightly: was not installed.\n"


def test_exposure_is_printed(command: Command, root: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "exposure", lambda *_args, **_more: "4.9 OK")
    where = ("--config", config, "--root", root, "--with", "systemd")
    line = "Exposure of the service, as systemd-analyze rates it: 4.9 OK."
    assert command("schedule", "install", *where).stdout.splitlines()[-1] == line
    assert command("schedule", "list", *where).stdout.splitlines()[-1] == line


@pytest.mark.parametrize("way", ["systemd", "cron"])
def test_document(command: Command, root: Path, config: Path, way: str) -> None:
    document = command(
        "schedule", "install", "nightly", "--config", config, "--root", root, "--with", way, "--json"
    ).document
    assert (document["action"], document["by"]) == ("install", way)
    (job,) = document["jobs"]
    assert (job["job"], job["state"], job["active"]) == ("nightly", "installed", None)
    assert all(file["changed"] for file in job["files"])
    assert len(document["warnings"]) == 1
    listed = command("schedule", "list", "--json", "--config", config, "--root", root, "--with", way).document
    assert [one["state"] for one in listed["jobs"]] == ["installed", "absent"]


def test_trial_prints_files(command: Command, root: Path, config: Path) -> None:
    done = command("schedule", "install", "--dry-run", "--config", config, "--root", root, "--with", "systemd")
    lines = done.stdout.splitlines()
    assert f"# {root}/etc/systemd/system/vbackup@nightly.timer.d/50-vbackup.conf" in lines
    assert "OnCalendar=*-*-* 01:30:00" in lines
    assert f"ExecStart=:/usr/bin/vbackup --config {config} run --due nightly" in lines
    assert list(root.iterdir()) == []


def test_words_may_stand_after_options(command: Command, root: Path, config: Path) -> None:
    where = ("--config", config, "--root", root, "--with", "cron")
    assert command("schedule", "install", *where, "nightly").status == 0
    assert (root / "etc/cron.d/vbackup-nightly").is_file()


def test_program_that_jobs_start(
    command: Command, root: Path, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = ("--config", config, "--root", root, "--with", "systemd", "--dry-run")
    assert (
        "ExecStart=:/opt/vbackup --config" in command("schedule", "install", *where, "--program", "/opt/vbackup").stdout
    )
    refused = command("schedule", "install", *where, "--program", "vbackup", status=2)
    assert "is no absolute path" in refused.stderr
    program = tmp_path / "vbackup"
    program.touch(0o755)
    here = ("--config", config, "--with", "cron", "--dry-run", "--json")
    monkeypatch.setattr("sys.argv", [str(program)])
    content = command("schedule", "install", *here).document["jobs"][0]["files"][0]["content"]
    assert f"root {program} --config" in content
    monkeypatch.setattr("sys.argv", ["/x/vbackup/__main__.py"])
    content = command("schedule", "install", *here).document["jobs"][0]["files"][0]["content"]
    assert " -m vbackup --config" in content


def test_commands_that_are_left_to_do_are_a_warning(
    command: Command, root: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbackup.operations import schedule

    monkeypatch.setattr(schedule, "_is_here", lambda *_args: True)
    monkeypatch.setattr(systemd, "RUNNING", root / "none")
    done = command("schedule", "install", "--config", config, "--root", root, "--with", "systemd")
    assert done.status == 0
    wanted = "Where it runs, give it: systemctl daemon-reload && systemctl restart vbackup@nightly.timer"
    assert wanted in " ".join(done.stderr.split())


def test_foreign_file_is_status_7_and_a_fault_of_the_configuration_2(
    command: Command, root: Path, config: Path
) -> None:
    path = root / "etc/cron.d/vbackup-nightly"
    path.parent.mkdir(parents=True)
    path.write_text("# mine\n")
    where = ("--config", config, "--root", root, "--with", "cron")
    done = command("schedule", "install", *where, status=7)
    assert "is not vbackup's" in done.stderr
    assert path.read_text() == "# mine\n"
    assert "in the way" in command("schedule", "list", *where).stdout
    config.write_text("[job.nightly]\nat = 'noon'\n")
    command("schedule", "install", *where, status=2)
    command("schedule", "install", "other", "--config", config, status=2)


def test_every_state_has_its_words() -> None:
    assert handler._STATES.keys() == set(handler.ScheduleState)
