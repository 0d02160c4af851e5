"""A program runs jobs as the command does, and looks at what became of them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

import vbackup.api
from tests.unit.operations.run_examples import NOW, Site, config, job
from tests.unit.runs.examples import run
from vbackup.errors import NoConfigError, UsageError
from vbackup.operations import run_job
from vbackup.runs.store import Store


def test_jobs_are_run_with_a_clock_of_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    monkeypatch.setattr(run_job.World.__init__, "__defaults__", (run_job.utc_now, site.steps))
    ran = vbackup.api.run_jobs(config(site.path), state=tmp_path / "state", now=lambda: NOW)
    assert [(one.job, one.started, one.status) for one in ran.runs] == [("nightly", NOW, 0)]
    [kept] = vbackup.api.runs_of("nightly", state=tmp_path / "state")
    assert kept.id == ran.runs[0].id
    [planned] = vbackup.api.plan_runs(config(site.path), state=tmp_path / "state")
    assert planned.last is not None
    assert planned.last.started == NOW
    [planned] = vbackup.api.plan_runs(
        config(site.path), ["nightly"], changed=[job(copy_to=(), options={})], state=tmp_path / "state"
    )
    assert [step.kind for step in planned.steps] == [vbackup.api.StepKind.BACKUP]


def test_unknown_jobs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no job 'x'"):
        vbackup.api.plan_runs(config(tmp_path), ["x"], state=tmp_path)
    assert vbackup.api.runs_of("x", limit=3, state=tmp_path) == []


def test_runs_are_those_of_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path))
    for day in (1, 2):
        one = run(started=datetime(2026, 11, day, tzinfo=timezone.utc))
        Store(tmp_path).begin(one)
        Store(tmp_path).end(one)
    assert [one.id for one in vbackup.api.runs_of("nightly", limit=1)] == ["20261102T000000Z"]


def test_without_a_configuration_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbackup.config.documents.default_paths", lambda: ())
    with pytest.raises(NoConfigError, match="'vbackup config init' writes one"):
        vbackup.api.read_config()
