"""What the schedule of a job needs is in the configuration, and what is missing is said."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.notices.runs import PLACE, STARTED, USUAL, config, job
from vbackup.config.calendar import Calendar, Window
from vbackup.config.model import Config, Job, Notifier, RepositoryEntry, Secret, TargetEntry
from vbackup.errors import UsageError
from vbackup.operations.schedule_needs import ScheduleRequest, chosen, of_job, warnings
from vbackup.schedule.places import Way
from vbackup.schedule.units import Credential, Needs


def configuration(one: Job, **more: Any) -> Config:
    notifiers = (
        Notifier("ops", PLACE, USUAL, webhook=Secret(credential="ops-url"), secret=Secret(credential="ops-key")),
        Notifier("dba", PLACE, USUAL, ping=Secret(credential="dba-url")),
        Notifier("mail", PLACE, USUAL, mail_to=("root",)),
    )
    made = replace(
        config(*notifiers, jobs={"nightly": one, "by-hand": replace(one, name="by-hand", calendar=None)}),
        repositories={"main": RepositoryEntry("main", Path("/srv/backup"), PLACE)},
        targets={
            "disk": TargetEntry("disk", "/usr/disk", {}, PLACE),
            "away": TargetEntry("away", "ssh://host/x", {}, PLACE),
        },
    )
    return replace(made, **more)


def needs(one: Job | None = None, request: ScheduleRequest | None = None, **more: Any) -> Needs:
    one = job() if one is None else one
    return of_job(one, configuration(one, **more), request or ScheduleRequest(), STARTED)


def test_command_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VBACKUP_STATE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert needs().command == ("/usr/bin/vbackup",)
    request = ScheduleRequest(command=("/opt/vbackup",), config=Path("my.toml"))
    assert needs(request=request).command == ("/opt/vbackup", "--config", str(tmp_path / "my.toml"))
    assert needs().environment == ()
    monkeypatch.setenv("VBACKUP_STATE", "/my/state")
    assert needs().environment == (("VBACKUP_STATE", "/my/state"),)


def test_times_and_delay() -> None:
    one = job(random_delay_s=600.0)
    assert needs(replace(one, calendar=Calendar((time(13), time(1))))).on_calendar[0] == "*-*-* 01,13:00:00"
    assert needs(one).random_delay_s == 600.0


def test_mail_of_a_user_needs_a_sendmail_that_can_change_its_group() -> None:
    of_user = ScheduleRequest(is_user=True)
    assert needs(job(notify=("mail",)), of_user).sends_mail
    assert not needs(job(notify=("ops",)), of_user).sends_mail
    assert not needs(job(notify=("mail",))).sends_mail  # root can write to the queue


def test_a_run_that_waits_for_its_window_is_called_when_that_opens() -> None:
    night = replace(job(window=Window(time(22), time(6))), calendar=Calendar((time(1),)))
    assert needs(night).on_calendar[-1] == "*-*-* 22:00:00"
    at_once = replace(night, calendar=Calendar((time(1), time(22))))
    assert needs(at_once).on_calendar[0] == "*-*-* 01,22:00:00"
    assert "*-*-* 22:00:00" not in needs(at_once).on_calendar
    weekly = replace(at_once, calendar=Calendar((time(1), time(22)), frozenset({5})))
    assert needs(weekly).on_calendar[-1] == "*-*-* 22:00:00"


def test_directories_that_a_run_writes_to() -> None:
    one = job(copy_to=("disk", "away"), options={"backup": {"fleecing": "/fast"}, "audit": {"scratch": "/scratch"}})
    found = needs(
        one,
        metrics_file=Path("/var/metrics/x.prom"),
        report_html=Path("/usr/share/www/x.html"),
        report_text=Path("/etc/motd.d/x"),
    )
    assert {str(path) for path in found.writable} == {
        *("/srv/backup", "/usr/disk", "/var/metrics", "/usr/share/www", "/etc/motd.d", "/fast", "/scratch"),
    }


def test_credentials_are_those_of_the_notifiers_of_the_job(tmp_path: Path) -> None:
    request = ScheduleRequest(root=tmp_path)
    sealed = tmp_path / "etc/credstore.encrypted/ops-key"
    sealed.parent.mkdir(parents=True)
    sealed.touch()
    assert needs(job(notify=("ops", "mail")), request).credentials == (
        Credential("ops-url", Path("/etc/credstore/ops-url")),
        Credential("ops-key", Path("/etc/credstore.encrypted/ops-key"), is_encrypted=True),
    )
    assert [one.name for one in needs(job(), request).credentials] == ["ops-url", "ops-key", "dba-url"]


def test_credentials_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/me/.config")
    found = needs(job(notify=("dba",)), ScheduleRequest(is_user=True)).credentials
    assert [one.path for one in found] == [Path("/home/me/.config/credstore/dba-url")]


def test_jobs_are_chosen_by_name_or_by_their_times() -> None:
    made = configuration(job())
    assert [one.name for one in chosen((), made)] == ["nightly"]
    assert [one.name for one in chosen(("nightly", "nightly"), made)] == ["nightly"]
    with pytest.raises(UsageError, match="No job 'nightlie' in the configuration; the closest is 'nightly'"):
        chosen(("nightlie",), made)
    with pytest.raises(UsageError, match=r"Job by-hand has no times: give it 'at' in /etc/vbackup/vbackup.toml:1"):
        chosen(("by-hand",), made)
    with pytest.raises(UsageError, match="No job of the configuration has times"):
        chosen((), replace(made, jobs={}))


def test_missing_credential_and_what_cron_cannot_do_are_said(tmp_path: Path) -> None:
    request = ScheduleRequest(root=tmp_path)
    found = needs(job(notify=("dba",), random_delay_s=600.0), request)
    (said,) = warnings([found], Way.SYSTEMD, request)
    assert said.startswith("/etc/credstore/dba-url does not exist: put the credential dba-url of job nightly there")
    credential = tmp_path / "etc/credstore/dba-url"
    credential.parent.mkdir(parents=True)
    credential.touch()
    assert list(warnings([found], Way.SYSTEMD, request)) == []
    assert list(warnings([found], Way.CRON, request)) == [
        "Job nightly needs the credential dba-url, which only systemd loads: use a file.",
        "Job nightly: cron knows no random-delay, so it begins within 15 minutes of its time.",
    ]


def test_user_who_does_not_linger_is_told() -> None:
    request = ScheduleRequest(is_user=True)
    found = list(warnings([needs(job(notify=()), request)], Way.SYSTEMD, request))
    assert ["loginctl enable-linger" in one for one in found] == [True] * (not _lingers())


def _lingers() -> bool:
    return (Path("/var/lib/systemd/linger") / os.environ.get("USER", "root")).exists()
