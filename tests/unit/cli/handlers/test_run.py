"""``vbackup run``: what is printed, as a table and as documents, and the options of one job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import documents
from tests.unit.operations.run_examples import BUSY, Scripted
from vbackup.operations import run_job
from vbackup.operations.run_children import Ended

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

CONFIG = """\
[repository.main]
path = "{repository}"
[target.offsite]
url = "{directory}/offsite"
[target.other]
url = "{directory}/other"
[notify.admin]
mail-to = "root"
[job.nightly]
domains = ["web", "db-*"]
exclude = "db-test"
at = "01:00"
copy-to = "offsite"
notify = []
[job.nightly.prune]
keep-last = 3
[job.weekly]
at = "02:00"
on = "sun"
notify = []
"""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted()
    defaults: Any = run_job.World.__init__.__defaults__
    monkeypatch.setattr(run_job.World.__init__, "__defaults__", (*defaults[:-1], made))
    return made


@pytest.fixture
def run(command: Command, filled: Path, tmp_path: Path, steps: Scripted, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with the configuration above."""
    assert steps is not None
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path / "state"))
    path = tmp_path / "vbackup.toml"
    path.write_text(CONFIG.format(repository=filled, directory=tmp_path))
    path.chmod(0o600)

    def run(*arguments: str, status: int = 0) -> Outcome:
        return command("run", "--config", path, *arguments, status=status)

    return run


def test_all_jobs_are_run_and_printed(run: Any, steps: Scripted) -> None:
    text = run().stdout
    assert text.count("STEP") == 2
    assert "Job nightly done in" in text
    assert "Job weekly done in" in text
    assert steps.kinds == ["backup", "prune", "copy", "backup"]


def test_document_has_the_runs(run: Any) -> None:
    document = run("nightly", "--json").document
    documents.check(document)
    assert (document["schema"], document["status"]) == ("vbackup.runs/1", 0)
    assert [one["job"] for one in document["runs"]] == ["nightly"]
    assert document["runs"][0]["steps"][0]["document"]["schema"] == "vbackup.backups/1"


def test_quiet_prints_failures_only(run: Any, steps: Scripted) -> None:
    assert run("nightly", "-q").stdout == ""
    steps.answers["prune"] = BUSY
    outcome = run("nightly", "-q", status=8)
    assert "Another vbackup is working on it." in outcome.stdout
    assert outcome.stderr.endswith("vbackup: Job nightly: 1 of 3 steps failed: prune.\n")


def test_no_timer_accepts_a_clock(run: Any) -> None:
    said = run("--due", "--accept-clock", status=2).stderr
    assert "--accept-clock is for somebody who has looked at the clock" in said


def test_what_is_not_due_is_said(run: Any) -> None:
    run()
    outcome = run("--due")
    assert outcome.stdout.count(", after its last time, ") == 2
    assert outcome.stderr == ""


def test_job_that_is_not_run_is_an_error(run: Any) -> None:
    outcome = run("nightly", "--window", "00:00-00:01", status=8)
    assert outcome.stderr.startswith("vbackup: The window of job nightly is closed: it opens at ")
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--domain", "web"), ["web"]),
        (("--domain", "web", "--domain", "x*"), ["web", "x*"]),
        (("-c", "qemu:///session"), ["--connect=qemu:///session"]),
        (("--exclude", "y*"), ["--exclude=db-test", "--exclude=y*"]),
    ],
)
def test_options_change_the_job_for_one_run(
    run: Any, steps: Scripted, options: tuple[str, ...], words: list[str]
) -> None:
    run("nightly", *options)
    assert [word for word in steps.argvs[0] if word in words] == words


def test_copies_go_where_an_option_says(run: Any, steps: Scripted) -> None:
    run("nightly", "--copy-to", "other")
    assert next(word for word in steps.argvs[-1] if word.startswith("--to=")).endswith("/other")
    steps.argvs.clear()
    run("nightly", "--no-copy", "--no-notify", "--window", "any")
    assert steps.kinds == ["backup", "prune"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--domain", "web"), "Options that change a job are for one: name one job."),
        (("nightly", "weekly", "--no-copy"), "Options that change a job are for one: name one job."),
        (("nightli",), "no job 'nightli'; the closest is 'nightly'."),
        (("nightli", "--no-copy"), "no job 'nightli'; the closest is 'nightly'."),
        (("nightly", "--copy-to", "ofsite"), "no target 'ofsite'; the closest is 'offsite'."),
        (("nightly", "--notify", "x"), "no notifier 'x'; there are: admin."),
        (("nightly", "--window", "1-2"), "'1' is not a time of day like '01:00'"),
        (("nightly", "--window", "22:00-22:00"), "never opens"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_run(
    run: Any, steps: Scripted, arguments: tuple[str, ...], message: str
) -> None:
    assert message in run(*arguments, status=2).stderr
    assert steps.argvs == []


def test_list_has_the_times(run: Any) -> None:
    run("nightly")
    lines = run("--list").stdout.splitlines()
    assert lines[0].split("  ")[0] == "JOB"
    assert [line.split()[0] for line in lines[1:]] == ["nightly", "weekly"]
    assert "never run" in lines[2]
    document = run("--list", "--json").document
    documents.check(document)
    assert [one["last"] is None for one in document["jobs"]] == [False, True]


def test_dry_run_prints_commands_and_executes_none(run: Any, steps: Scripted) -> None:
    text = run("nightly", "--dry-run").stdout
    assert "    vbackup prune --keep-last=3 --repository=" in text
    assert text.endswith("Nothing was executed.\n")
    assert steps.argvs == []
    document = run("--dry-run", "--json").document
    documents.check(document)
    assert [step["kind"] for step in document["jobs"][0]["steps"]] == ["backup", "prune", "copy"]


def test_dry_run_of_what_is_due_leaves_out_the_others(run: Any) -> None:
    run()
    assert "vbackup backup" not in run("--dry-run", "--due").stdout


def test_configuration_that_is_not_valid_is_refused_with_its_place(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "vbackup.toml"
    path.write_text(f"[repository.main]\npath = '{tmp_path}'\n[job.nightly]\nrepositry = 'x'\n")
    outcome = command("run", "--config", path, status=2)
    assert f"{path}:4: " in outcome.stderr
    assert json.loads(command("run", "--config", path, "--json", status=2).stdout)["status"] == 2


def test_failed_step_is_the_exit_status(run: Any, steps: Scripted) -> None:
    steps.answers["copy"] = Ended(137, None, killed_by=9)
    assert "It was killed by SIGKILL" in run("nightly", status=137).stdout


@pytest.mark.parametrize(
    ("change", "job", "fault"),
    [
        ("[job.nightly.prune]\nkeep-lst = 3", "nightly", "Unknown key 'keep-lst'"),
        ("", "gone", "The configuration has no job 'gone'"),
    ],
)
def test_a_timer_whose_job_cannot_be_run_tells_it(
    run: Any, tmp_path: Path, change: str, job: str, fault: str, steps: Scripted
) -> None:
    mail = tmp_path / "mail"
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f"#!/bin/sh\ncat >> {mail}\n")
    sendmail.chmod(0o700)
    path = tmp_path / "vbackup.toml"
    text = path.read_text().replace('mail-to = "root"', f'mail-to = "root"\nsendmail = "{sendmail}"')
    path.write_text(text.replace("notify = []", "").replace("[job.nightly.prune]\nkeep-last = 3", change))
    run(job, status=2)
    run(job, "--due", "--dry-run", status=2)
    assert not mail.exists()  # somebody is there and sees it
    for _ in range(2):  # it is told once
        assert fault in run(job, "--due", status=2).stderr
    assert mail.read_text().count("Subject:") == 1
    assert fault in mail.read_text().replace("=\n", "").replace("=27", "'")
    assert steps.argvs == []
