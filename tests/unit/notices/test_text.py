"""The title says what, the first line what to do, and each fact is one line, whatever it is made of."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.notices.runs import NO_SPACE, USUAL, domain, overview, run
from vbackup.config.model import When
from vbackup.notices import text
from vbackup.notices.occasion import Occasion, decide
from vbackup.notices.told import Told
from vbackup.overview.state import Overview
from vbackup.runs.record import DomainResult, Fault, Outcome, Run, Step, StepKind

LATE = overview(domain("web", is_overdue=True), domain("db"))
LOCKED = Fault("STORAGE_UNUSABLE", 7, "Cannot read /srv/backup: it is not mounted. Mount it.", None)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def occasion(one: Run | None = None, state: Overview | None = None, *, told: Told | None = None) -> Occasion:
    return decide(USUAL | {When.ALWAYS}, told or Told(), run=one, overview=state, jobs=None)


def after(one: Run) -> Told:
    return occasion(one).if_sent


def said(found: Occasion, **more: Any) -> tuple[str, list[str]]:
    return text.title(found, "hv1"), text.text(found, "hv1", **more).splitlines()


def test_failure() -> None:
    title, lines = said(occasion(run("web", "db")))
    assert title == "vbackup nightly on hv1: FAILED: web, db not backed up"
    assert lines[:3] == [f"web: {NO_SPACE}", "1 more fault is below.", ""]
    assert f"  db: {NO_SPACE}" in lines
    assert "Result      some failed (exit status 3)" in lines
    assert "Took        12 min" in lines
    assert "Started     2026-11-30 01:00 UTC" in lines
    assert "  prune: done: 2 backups removed" in lines
    assert lines[-1] == "Run it again:         vbackup run nightly"


def test_repository_that_is_not_there() -> None:
    steps = (
        Step(StepKind.BACKUP, Outcome.FAILED, None, None, 7, faults=(LOCKED,)),
        Step(StepKind.PRUNE, Outcome.SKIPPED, None, None, None, reason="the repository cannot be opened"),
    )
    title, lines = said(occasion(run(outcome=Outcome.FAILED, status=7, steps=steps, domains=())))
    assert title == "vbackup nightly on hv1: FAILED: nothing was backed up"
    assert lines[0] == LOCKED.message
    assert "  prune: skipped: the repository cannot be opened" in lines


def test_all_domains_failed() -> None:
    assert "FAILED: none of 3 domains was backed up" in said(occasion(run("web", "db", "mail")))[0]


def test_many_domains_failed() -> None:
    many = tuple(DomainResult(f"vm{number}", None, Outcome.FAILED) for number in range(100))
    title, lines = said(occasion(replace(run("web"), domains=(*many, run().domains[1]))))
    assert title.endswith("FAILED: vm0, vm1, vm2 and 97 more not backed up")
    assert "  and 40 more" in lines


def test_other_step_failed() -> None:
    good = run()
    copy = Step(StepKind.COPY, Outcome.FAILED, None, None, 4, target="offsite", faults=(LOCKED,))
    verify = Step(StepKind.VERIFY, Outcome.FAILED, None, None, 6)
    steps = (*good.steps, copy, verify)
    title, lines = said(occasion(replace(good, steps=steps, outcome=Outcome.SOME_FAILED, status=3)))
    assert title.endswith("FAILED: copy (offsite), verify failed")
    assert lines[0] == LOCKED.message


def test_interrupted() -> None:
    title, lines = said(occasion(run(outcome=Outcome.INTERRUPTED, status=143)))
    assert title.endswith("FAILED: interrupted")
    assert lines[0] == "The run was interrupted. Run it again: vbackup run nightly"


def test_commands_name_the_configuration_that_was_given() -> None:
    given = ("--config", "/srv/my.toml")
    lines = said(occasion(run(outcome=Outcome.INTERRUPTED, status=143)), given=given)[1]
    assert lines[0] == "The run was interrupted. Run it again: vbackup run nightly --config /srv/my.toml"
    assert lines[-2:] == [
        "State of everything:  vbackup status nightly --config /srv/my.toml",
        "Run it again:         vbackup run nightly --config /srv/my.toml",
    ]
    late = said(occasion(state=LATE), given=given)[1]
    assert late[0] == "Back up web: vbackup run nightly --config /srv/my.toml"


def test_bad_status_alone() -> None:
    title, lines = said(occasion(run(status=1)))
    assert title.endswith("FAILED: exit status 1")
    assert lines[0].endswith("run it again: vbackup run nightly")


def test_recovery() -> None:
    title, lines = said(occasion(run(number=1), told=after(run("web"))))
    assert title == "vbackup nightly on hv1: works again: 3 domains backed up, 3.0 MiB"
    assert lines[0] == "Nothing to do: nightly works again. It had failed since 2026-11-30 01:00 UTC."


def test_recovery_from_what_nobody_was_told() -> None:
    told = occasion(run("web")).if_not
    assert said(occasion(run(number=1), told=told))[1][0].endswith("(the message on that could not be sent).")


def test_failure_that_goes_on_has_its_beginning() -> None:
    _, lines = said(occasion(run("web", "db", number=3), told=after(run("web"))))
    assert "Fails since 2026-11-30 01:00 UTC" in lines


def test_overdue() -> None:
    title, lines = said(occasion(None, LATE))
    assert title == "vbackup on hv1: OVERDUE: web"
    assert lines[0] == "Back up web: vbackup run nightly"
    assert "  web: last backed up 2026-11-27 01:00 UTC (3 d ago); nightly promises 26 h" in lines


def test_domain_that_was_never_backed_up() -> None:
    never = replace(domain("web", is_overdue=True), last=None, age_s=None, job=None)
    _, lines = said(occasion(None, overview(never)))
    assert lines[0] == "Back up web with 'vbackup backup'"
    assert "  web: never backed up; its job promises 26 h" in lines


def test_no_longer_overdue() -> None:
    told = occasion(None, LATE).if_sent
    title, lines = said(occasion(None, overview(domain("web"), domain("db")), told=told))
    assert title == "vbackup on hv1: web no longer overdue"
    assert lines[0] == "Nothing to do: web no longer overdue."


def test_unusual() -> None:
    one = run(unusual=("The clock jumped by 365 days.",))
    title, lines = said(occasion(one))
    assert title == "vbackup nightly on hv1: UNUSUAL: The clock jumped by 365 days."
    assert lines[0] == "Look whether this is what you expect: The clock jumped by 365 days."


def test_good_run() -> None:
    title, lines = said(occasion(run()))
    assert title == "vbackup nightly on hv1: OK: 3 domains backed up, 3.0 MiB"
    assert lines[0] == "Nothing to do: 3 domains backed up, 3.0 MiB."
    assert "all steps done" in said(occasion(run(domains=())))[0]


def test_tail_of_the_log_is_at_the_end() -> None:
    _, lines = said(occasion(run("web")), log_tail="one\ntwo \x1b[31m\n\n")
    assert lines[-3:] == ["LAST LINES OF THE LOG", "  one", "  two \\x1b[31m"]


def test_warnings_are_listed() -> None:
    one = run()
    steps = (replace(one.steps[0], warnings=("web: The guest was not frozen.",)),)
    assert "  web: The guest was not frozen." in said(occasion(replace(one, steps=steps)))[1]


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        *((-1, "0 s"), (20, "20 s"), (60, "1 min"), (7140, "119 min"), (7200, "2 h"), (93600, "26 h")),
        *((9000, "2 h 30 min"), (172800, "2 d"), (190800, "2 d 5 h")),
    ],
)
def test_durations(seconds: float, wanted: str) -> None:
    one = run("web")
    found = replace(domain("web", is_overdue=True), age_s=seconds)
    assert f"({wanted} ago)" in "\n".join(said(occasion(one, overview(found)))[1])


@given(st.text(), st.text())
def test_names_and_messages_add_no_lines(name: str, message: str) -> None:
    """A guest's name cannot make a text that looks like another, or steer a terminal."""
    plain, hostile = (
        replace(
            run(unusual=(said_,)),
            job=job,
            outcome=Outcome.SOME_FAILED,
            status=3,
            domains=(DomainResult(job, None, Outcome.FAILED, fault=Fault("X", 1, said_, job)),),
            steps=(Step(StepKind.BACKUP, Outcome.FAILED, None, None, 1, summary=said_, warnings=(said_,)),),
        )
        for job, said_ in (("name", "message"), (f"\n{name}", f"\n{message}"))
    )
    lines = [text.text(occasion(one), "hv1").split("\n") for one in (plain, hostile)]
    assert len(lines[0]) == len(lines[1])
    assert all(line.isprintable() for line in lines[1])
    title = text.title(occasion(hostile), "h\nv1")
    assert title.isprintable()
    assert len(title) <= 180
