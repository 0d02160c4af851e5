"""Each reason why a job is not as it should be is told, and a clock that is wrong by a year is named first."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tests.unit.overview.examples import (
    DAY,
    FAULT,
    HOUR,
    NIGHT,
    NOW,
    domain,
    facts,
    glance,
    job,
    live,
    made,
    only_job,
    repository,
    run,
)
from vbackup.overview import assess
from vbackup.overview.jobs import GRACE
from vbackup.overview.reasons import moment
from vbackup.overview.state import Health, JobState
from vbackup.runs import due
from vbackup.runs.record import Fault, Outcome, Run, Step, StepKind


def of(*runs: Run, now: datetime = NOW, random_delay_s: float = 0.0) -> JobState:
    return only_job(assess.overview(facts(jobs=(job(live(), runs=runs, random_delay_s=random_delay_s),), time=now)))


def step(kind: StepKind, *faults: Fault, outcome: Outcome = Outcome.FAILED) -> Step:
    return Step(kind, outcome, NIGHT, 1.0, 7, faults=faults)


def test_a_job_whose_last_run_was_good_is_ok() -> None:
    state = of(run())
    assert (state.health, state.reasons, state.is_running, state.is_missed) == (Health.OK, (), False, False)
    assert (state.last_good, state.next_run) == (NIGHT, NIGHT + DAY)


def test_a_run_that_failed_is_critical_and_says_why() -> None:
    failed = run(outcome=Outcome.FAILED, status=7, steps=(step(StepKind.BACKUP, FAULT),))
    state = of(failed, run(started=NIGHT - DAY))
    assert (state.health, state.last_good) == (Health.CRITICAL, NIGHT - DAY)
    assert state.reasons == (f"Its run of {moment(NIGHT)} failed: {FAULT.message}",)


def test_a_run_of_which_a_part_failed_is_a_warning_and_tells_only_the_first_faults() -> None:
    faults = [Fault("BUSY", 8, f"It is busy {number}.", f"guest{number}") for number in range(5)]
    partly = run(outcome=Outcome.SOME_FAILED, status=3, steps=(step(StepKind.BACKUP, *faults),))
    state = of(partly)
    assert state.health is Health.WARNING
    told = "guest0: It is busy 0. guest1: It is busy 1. guest2: It is busy 2. And 2 more."
    assert state.reasons == (f"Its run of {moment(NIGHT)} failed in part: {told}",)


def test_an_interrupted_run_and_what_was_unusual_are_warnings() -> None:
    cut = run(outcome=Outcome.INTERRUPTED, ended=None, unusual=("The clock jumped.",), notices=("No mail was sent.",))
    state = of(cut)
    assert (state.health, state.last_good) == (Health.WARNING, None)
    assert state.reasons == (f"Its run of {moment(NIGHT)} was interrupted.", "The clock jumped.", "No mail was sent.")


def test_while_a_run_is_at_work_the_one_before_counts() -> None:
    working = run(started=NOW, ended=None, outcome=Outcome.RUNNING)
    state = of(working, run(outcome=Outcome.FAILED, status=7))
    assert (state.is_running, state.health) == (True, Health.CRITICAL)
    assert of(working, run()).health is Health.OK


def test_a_job_that_has_never_run_is_a_warning_if_it_has_a_calendar() -> None:
    assert of().reasons == ("It has never run.",)
    by_hand = job(live(), runs=(), calendar=None)
    state = only_job(assess.overview(facts(jobs=(by_hand,))))
    assert (state.health, state.next_run) == (Health.OK, None)


@pytest.mark.parametrize(("late", "is_missed"), [(GRACE - timedelta(minutes=1), False), (GRACE, True)])
def test_a_run_is_missed_when_its_time_has_passed_for_long_enough(late: timedelta, is_missed: bool) -> None:
    state = of(run(started=NIGHT - DAY), now=NIGHT + late)
    assert state.is_missed is is_missed
    assert state.reasons == ((f"Its run of {moment(NIGHT)} was missed.",) if is_missed else ())


def test_a_random_delay_is_waited_for() -> None:
    assert not of(run(started=NIGHT - DAY), now=NIGHT + HOUR, random_delay_s=3600.0).is_missed
    assert of(run(started=NIGHT - DAY), now=NIGHT + 2 * HOUR, random_delay_s=3600.0).is_missed


def test_a_run_that_began_before_its_time_was_not_missed() -> None:
    early = run(started=NIGHT - timedelta(minutes=1), scheduled=NIGHT)
    assert not of(early).is_missed


def test_a_run_of_the_future_names_the_clock() -> None:
    state = of(run(started=NOW + 365 * DAY))
    assert state.health is Health.WARNING
    assert "later than now by the clock of hypervisor" in state.reasons[0]


def test_a_clock_a_year_ahead_is_named_in_one_sentence_before_all_that_is_overdue() -> None:
    then = NOW + 365 * DAY
    found = assess.overview(facts(time=then, booted=then - HOUR))
    (sentence,) = found.warnings
    assert sentence.startswith(f"The clock of hypervisor says {moment(then)}, and that it was started at")
    assert "the newest run of all jobs was 365 d before" in sentence
    assert (found.health, found.domains[0].is_overdue) == (Health.CRITICAL, True)


def test_the_clock_is_doubted_when_nothing_is_overdue_too() -> None:
    then = NOW + 365 * DAY
    fresh = repository(domain(glance(made(-364.9 * DAY))))
    working = job(live(), runs=(run(),))
    found = assess.overview(facts(time=then, booted=NOW - 30 * DAY, jobs=(working,), repositories=(fresh,)))
    assert "started" not in found.warnings[0]
    assert found.health is Health.WARNING


def test_a_gap_that_the_calendar_explains_says_nothing_of_the_clock() -> None:
    assert assess.overview(facts(time=NOW + 29 * DAY)).warnings == ()
    assert assess.overview(facts(time=NOW + 365 * DAY, jobs=(job(live(), calendar=None),))).warnings == ()
    recent = job(live(), name="other", runs=(run(started=NOW + 364 * DAY),))
    assert assess.overview(facts(time=NOW + 365 * DAY, jobs=(job(live()), recent))).warnings == ()


def test_what_is_told_of_a_run_names_a_domain_once() -> None:
    named = replace(FAULT, domain="web", message="Domain web is gone.")
    state = of(run(outcome=Outcome.FAILED, status=4, steps=(step(StepKind.BACKUP, named, named),)))
    assert state.reasons == (f"Its run of {moment(NIGHT)} failed: Domain web is gone.",)


def test_a_run_of_other_domains_is_neither_the_last_nor_the_last_good_one() -> None:
    some = run(started=NOW - HOUR, is_partial=True, outcome=Outcome.FAILED, status=7)
    whole = run()
    state = of(some, whole)
    assert (state.last_run, state.last_good, state.health) == (whole, NIGHT, Health.OK)
    failed = run(outcome=Outcome.FAILED, status=7, steps=(step(StepKind.BACKUP, FAULT),))
    state = of(run(started=NOW - HOUR, is_partial=True), failed, run(started=NIGHT - DAY))
    assert (state.last_run, state.last_good, state.health) == (failed, NIGHT - DAY, Health.CRITICAL)
    assert of(run(is_partial=True), run(started=NIGHT - DAY)).is_missed


def test_a_run_of_other_domains_that_is_at_work_is_told() -> None:
    working = run(started=NOW, ended=None, outcome=Outcome.RUNNING, is_partial=True)
    state = of(working, run())
    assert (state.is_running, state.last_run, state.health) == (True, run(), Health.OK)


def test_a_job_that_ran_for_other_domains_only_has_not_run() -> None:
    state = of(run(is_partial=True))
    assert (state.last_run, state.last_good, state.health) == (None, None, Health.WARNING)
    assert state.reasons == ("It has never run for all its domains.",)


def test_runs_that_cannot_be_read_are_not_said_to_be_missing() -> None:
    unread = replace(job(live(), runs=()), runs_error="Cannot read /state/runs: Permission denied.")
    state = only_job(assess.overview(facts(jobs=(unread,))))
    assert (state.health, state.last_run) == (Health.WARNING, None)
    assert state.reasons == ("Its runs are not known: Cannot read /state/runs: Permission denied.",)


@pytest.mark.parametrize(
    "before", [run(started=NIGHT - DAY, outcome=Outcome.INTERRUPTED), run(started=NIGHT - 2 * DAY)]
)
def test_which_run_made_up_for_another_is_said(before: Run) -> None:
    begun = NIGHT + 2 * HOUR
    (said,) = due.unusual([before], NIGHT, begun, 0.0)
    (reason,) = of(run(started=begun, unusual=(said,))).reasons
    assert reason.endswith(f"; the one of {moment(begun)} made up for it.")
    assert "this one" not in reason
