"""Schedules are installed all or none, brought up to date, listed as they are, and removed without a trace."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, time, timezone
from pathlib import Path

import pytest

from tests.unit.notices.runs import config, job
from vbackup.config.calendar import Calendar
from vbackup.config.model import Config
from vbackup.errors import StorageError, UsageError
from vbackup.operations import schedule
from vbackup.operations.schedule import Schedule, install, remove, show
from vbackup.operations.schedule_needs import ScheduleRequest
from vbackup.schedule import systemd
from vbackup.schedule.places import State, Way

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=timezone.utc)
TWO = config(jobs={"nightly": job(), "weekly": job("weekly"), "by-hand": replace(job("by-hand"), calendar=None)})


@pytest.fixture
def request_(tmp_path: Path) -> ScheduleRequest:
    root = tmp_path / "root"
    root.mkdir()
    return ScheduleRequest(root=root, way=Way.SYSTEMD)


def files(request: ScheduleRequest) -> list[str]:
    root = request.root
    return sorted(str(one.relative_to(root)) for one in root.rglob("*") if one.is_file() or one.is_symlink())


def states(found: Schedule) -> dict[str, State]:
    return {one.name: one.state for one in found.jobs}


def later(configuration: Config) -> Config:
    jobs = {**configuration.jobs, "nightly": replace(job(), calendar=Calendar((time(4),)))}
    return replace(configuration, jobs=jobs)


@pytest.mark.parametrize("way", Way)
def test_schedules_come_and_go(request_: ScheduleRequest, way: Way) -> None:
    request = replace(request_, way=way)
    assert states(show(request, TWO, NOW)) == dict.fromkeys(TWO.jobs, State.ABSENT)
    made = install(request, TWO, NOW)
    assert states(made) == {"nightly": State.INSTALLED, "weekly": State.INSTALLED}
    assert all(file.changed for file in made.jobs[0].files)
    assert made.jobs[0].next_run == TWO.jobs["nightly"].calendar.after(NOW)  # type: ignore[union-attr]
    again = install(request, TWO, NOW)
    assert not any(file.changed for one in again.jobs for file in one.files)
    assert states(show(request, TWO, NOW)) == {**states(made), "by-hand": State.ABSENT}
    remove(replace(request, jobs=("weekly",)))
    assert states(show(request, TWO, NOW))["weekly"] is State.ABSENT
    assert states(show(request, TWO, NOW))["nightly"] is State.INSTALLED
    gone = remove(request)
    assert states(gone) == {"nightly": State.ABSENT}
    assert files(request) == []
    assert states(remove(request)) == {}


@pytest.mark.parametrize("way", Way)
def test_changed_configuration_is_seen_and_brought_up_to_date(request_: ScheduleRequest, way: Way) -> None:
    request = replace(request_, way=way, command=("/usr/bin/vbackup",))
    install(request, TWO, NOW)
    changed = later(TWO) if way is Way.SYSTEMD else TWO
    other = request if way is Way.SYSTEMD else replace(request, command=("/opt/vbackup",))
    found = show(other, changed, NOW)
    assert states(found)["nightly"] is State.OUTDATED
    made = install(replace(other, jobs=("nightly",)), changed, NOW)
    assert [file.path.parent.name for file in made.jobs[0].files if file.changed] in (
        ["vbackup@nightly.timer.d"],
        ["cron.d"],
    )
    assert states(show(other, changed, NOW))["nightly"] is State.INSTALLED


def test_job_that_left_the_configuration_is_left_over(request_: ScheduleRequest) -> None:
    install(request_, TWO, NOW)
    less = config(jobs={"weekly": job("weekly")})
    assert states(show(request_, less, NOW)) == {"weekly": State.INSTALLED, "nightly": State.LEFT}
    no_times = config(jobs={**TWO.jobs, "weekly": replace(job("weekly"), calendar=None)})
    assert states(show(request_, no_times, NOW))["weekly"] is State.LEFT
    remove(replace(request_, jobs=("nightly",)))
    assert states(show(request_, less, NOW)) == {"weekly": State.INSTALLED}


def test_nothing_is_written_if_something_is_in_the_way(request_: ScheduleRequest) -> None:
    other = request_.root / "etc/systemd/system/vbackup@weekly.timer.d/50-vbackup.conf"
    other.parent.mkdir(parents=True)
    other.write_text("[Timer]\nOnCalendar=daily\n")
    with pytest.raises(StorageError, match="is not vbackup's"):
        install(request_, TWO, NOW)
    assert files(request_) == ["etc/systemd/system/vbackup@weekly.timer.d/50-vbackup.conf"]
    assert states(show(request_, TWO, NOW))["weekly"] is State.FOREIGN
    with pytest.raises(StorageError, match="is not vbackup's"):
        remove(request_)


def test_trial_writes_and_removes_nothing(request_: ScheduleRequest) -> None:
    trial = replace(request_, is_dry_run=True)
    made = install(trial, TWO, NOW)
    assert all(file.changed for one in made.jobs for file in one.files)
    assert any("OnCalendar=*-*-* 01:00:00" in file.content for file in made.jobs[0].files)
    assert files(request_) == []
    install(request_, TWO, NOW)
    before = files(request_)
    assert all(file.changed for file in remove(trial).jobs[0].files if "cron.d" not in str(file.path))
    assert files(request_) == before


def test_both_ways_are_removed(request_: ScheduleRequest) -> None:
    install(request_, TWO, NOW)
    install(replace(request_, way=Way.CRON), TWO, NOW)
    remove(request_)
    assert files(request_) == []


def test_way_is_the_one_that_the_system_has(request_: ScheduleRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = replace(request_, way=None)
    assert show(chosen, TWO, NOW).way is Way.CRON
    program = request_.root / "usr/lib/systemd/systemd"
    program.parent.mkdir(parents=True)
    program.touch()
    assert show(chosen, TWO, NOW).way is Way.SYSTEMD
    for running, way in ((request_.root, Way.SYSTEMD), (request_.root / "none", Way.CRON)):
        monkeypatch.setattr(systemd, "RUNNING", running)
        assert show(ScheduleRequest(), TWO, NOW).way is way


def test_user_without_systemd_gets_the_line(request_: ScheduleRequest) -> None:
    with pytest.raises(
        UsageError, match=r"Add to 'crontab -e': [0-9,]+ \* \* \* \* /usr/bin/vbackup run --due nightly"
    ):
        install(replace(request_, way=Way.CRON, is_user=True), TWO, NOW)


def test_unknown_jobs_and_roots_are_refused(request_: ScheduleRequest) -> None:
    with pytest.raises(UsageError, match="No job 'x'"):
        show(replace(request_, jobs=("x",)), TWO, NOW)
    with pytest.raises(UsageError, match="cannot be the name of a job"):
        remove(replace(request_, jobs=("../x",)))
    with pytest.raises(UsageError, match="does not exist; check --root"):
        show(replace(request_, root=request_.root / "none"), TWO, NOW)


def test_stamps_of_timers_go_with_them(request_: ScheduleRequest) -> None:
    install(request_, TWO, NOW)
    stamp = request_.root / "var/lib/systemd/timers/stamp-vbackup@nightly.timer"
    stamp.parent.mkdir(parents=True)
    stamp.touch()
    remove(request_)
    assert not stamp.exists()


# systemd of this system


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that systemd of this system got; its files are below a root directory all the same."""
    got: list[tuple[str, ...]] = []
    monkeypatch.setattr(systemd, "RUNNING", tmp_path)
    monkeypatch.setattr(schedule, "_is_here", lambda place, _request: place.way is Way.SYSTEMD)
    monkeypatch.setattr(systemd, "run", lambda argv: got.append(tuple(argv)))
    return got


def test_systemd_is_made_to_read_and_start_what_has_changed(
    request_: ScheduleRequest, here: list[tuple[str, ...]]
) -> None:
    made = install(request_, TWO, NOW)
    assert here == [
        ("systemctl", "daemon-reload"),
        ("systemctl", "restart", "vbackup@nightly.timer", "vbackup@weekly.timer"),
    ]
    assert (made.commands, made.warnings) == ((), ())
    here.clear()
    install(request_, TWO, NOW)
    assert here == [("systemctl", "start", "vbackup@nightly.timer", "vbackup@weekly.timer")]
    here.clear()
    install(request_, later(TWO), NOW)
    assert here == [
        ("systemctl", "daemon-reload"),
        ("systemctl", "restart", "vbackup@nightly.timer"),
        ("systemctl", "start", "vbackup@weekly.timer"),
    ]
    here.clear()
    remove(replace(request_, jobs=("weekly",)))
    assert here == [
        ("systemctl", "stop", "vbackup@weekly.timer", "vbackup-boot@weekly.timer"),
        ("systemctl", "daemon-reload"),
    ]
    here.clear()
    show(request_, TWO, NOW)
    assert ("systemctl", "is-active", "--quiet", "vbackup@nightly.timer") in here


def test_what_systemd_does_not_do_is_left_to_do(
    request_: ScheduleRequest, here: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "run", lambda argv: "Access denied." if "restart" in argv else here.append(argv))
    made = install(replace(request_, jobs=("nightly",)), TWO, NOW)
    assert made.commands == (("systemctl", "restart", "vbackup@nightly.timer"),)
    assert made.warnings == ("'systemctl restart vbackup@nightly.timer' failed: Access denied.",)
    assert states(made) == {"nightly": State.INSTALLED}


def test_where_systemd_does_not_run_everything_is_left_to_do(
    request_: ScheduleRequest, here: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(systemd, "RUNNING", tmp_path / "none")
    made = install(replace(request_, jobs=("nightly",)), TWO, NOW)
    assert made.commands == (("systemctl", "daemon-reload"), ("systemctl", "restart", "vbackup@nightly.timer"))
    assert here == []
    assert show(request_, TWO, NOW).jobs[0].is_active is None
