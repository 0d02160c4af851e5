"""What a run would do is what it does, and looking changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from tests.unit.operations.run_examples import NOW, Site, config, job
from vbackup.config.calendar import Window
from vbackup.operations import run, run_plan
from vbackup.operations.run import RunRequest


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"domains": (), "exclude": ()}, {"options": {}, "copy_to": ()}])
def test_commands_are_those_that_a_run_executes(site: Site, changes: dict[str, object]) -> None:
    one = job(**changes)
    settings = config(site.path, one)
    [planned] = run_plan.plan([one], settings, site.world)
    run.run(RunRequest(), settings, site.world)
    assert [command for step in planned.steps for command in step.commands] == site.steps.argvs


def test_times_and_the_last_run_are_told(site: Site) -> None:
    one = job(window=Window(NOW.astimezone().time().replace(second=0), (NOW.astimezone().time().replace(minute=59))))
    settings = config(site.path, one)
    [planned] = run_plan.plan([one], settings, site.world)
    assert (planned.due.is_due, planned.last, planned.opens, planned.error) == (True, None, None, None)
    assert planned.reason.startswith("Job nightly is due since ")
    assert any(word.startswith("--until=") for word in planned.steps[0].commands[0])
    run.run(RunRequest(), settings, site.world)
    site.clock.forward(hours=2)
    [planned] = run_plan.plan([one], settings, site.world)
    assert planned.last is not None
    assert planned.reason.startswith("Job nightly was run at ")
    assert "; its window opens at " in planned.reason
    assert planned.next == NOW.replace(second=0, day=1, month=12)


def test_a_repository_that_cannot_be_opened_is_told(site: Site) -> None:
    shutil.rmtree(site.path)
    settings = config(site.path)
    [planned] = run_plan.plan([job()], settings, site.world)
    assert planned.error is not None
    assert [len(step.commands) for step in planned.steps] == [1, 0, 0, 0, 0, 0, 0]
    assert not site.path.exists()


def test_nothing_is_changed(site: Site) -> None:
    before = sorted(site.directory.rglob("*"))
    run_plan.plan([job()], config(site.path), site.world)
    assert sorted(site.directory.rglob("*")) == before
    assert site.steps.argvs == []
    assert UUID in str(before)


def test_what_two_jobs_contest_is_not_in_the_plan_either(site: Site) -> None:
    one = job(domains=(), exclude=())
    settings = config(site.path, one, job("hourly", domains=("web",), options={"prune": {"keep-hourly": "48"}}))
    [planned] = run_plan.plan([one], settings, site.world)
    run.run(RunRequest(("nightly",)), settings, site.world)
    assert [command for step in planned.steps for command in step.commands] == site.steps.argvs
    assert "prune" not in site.steps.kinds
