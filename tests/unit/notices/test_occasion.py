"""Each thing is told once: until it changes, is over, or could not be sent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.notices.runs import STARTED, USUAL, domain, overview, run
from vbackup.config.model import When
from vbackup.notices import told
from vbackup.notices.occasion import Occasion, decide, faults_of, is_bad, unusual_of
from vbackup.notices.told import Told
from vbackup.overview.state import Overview
from vbackup.runs.record import Fault, Outcome, Run, Step, StepKind

ALL = frozenset((When.ALWAYS,))


class Notifier:
    """What one notifier hears, night after night."""

    def __init__(self, wanted: frozenset[When] = USUAL, jobs: frozenset[str] | None = None) -> None:
        self.wanted, self.jobs, self.told = wanted, jobs, Told()

    def hears(self, one: Run | None, state: Overview | None = None, *, is_sent: bool = True) -> Occasion:
        found = decide(self.wanted, self.told, run=one, overview=state, jobs=self.jobs)
        after = found.if_sent if is_sent or not found.reasons else found.if_not
        self.told = told.read(after.document())  # as the next run finds it
        return found

    def reasons(self, one: Run | None, state: Overview | None = None, *, is_sent: bool = True) -> list[str]:
        return [reason.value for reason in self.hears(one, state, is_sent=is_sent).reasons]


def test_good_runs_are_not_told() -> None:
    one = Notifier()
    assert [one.reasons(run(number=night)) for night in range(3)] == [[], [], []]
    assert one.told == Told()


def test_failure_is_told_once_and_its_end_once() -> None:
    one = Notifier()
    nights = [one.reasons(run(*failed, number=night)) for night, failed in enumerate([("web",)] * 3 + [()] * 2)]
    assert nights == [["failure"], [], [], ["recovery"], []]


def test_a_good_run_of_some_domains_is_no_recovery() -> None:
    one = Notifier()
    assert one.reasons(run("db")) == ["failure"]
    assert one.reasons(replace(run(number=1), is_partial=True)) == []
    assert one.reasons(run("db", number=2)) == []
    assert one.reasons(run(number=3)) == ["recovery"]
    assert one.reasons(replace(run("web", number=4), is_partial=True)) == ["failure"]


def test_other_failure_is_told_again() -> None:
    one = Notifier()
    assert one.reasons(run("web")) == ["failure"]
    assert one.reasons(run("web", "db")) == ["failure"]
    assert one.reasons(run("web", "db", code="DISK_BUSY")) == ["failure"]
    assert one.reasons(run("web", "db", code="DISK_BUSY")) == []


def test_figures_in_a_message_make_no_other_failure() -> None:
    one = Notifier()
    first = run("web")
    fault = Fault("NO_SPACE", 7, "Another sentence, with 3 bytes less.", "web")
    second = replace(first, steps=(replace(first.steps[0], faults=(fault,)), first.steps[1]))
    assert one.reasons(first) == ["failure"]
    assert one.reasons(second) == []


def test_failure_that_was_not_sent_is_told_by_the_next_run() -> None:
    one = Notifier()
    assert one.reasons(run("web"), is_sent=False) == ["failure"]
    found = one.hears(run("web", number=1))
    assert found.reasons == (When.FAILURE,)
    assert found.failed_since == STARTED
    assert not found.was_told
    assert one.reasons(run("web", number=2)) == []


def test_recovery_from_what_nobody_heard_of_is_told() -> None:
    one = Notifier()
    one.hears(run("web"), is_sent=False)
    found = one.hears(run(number=1))
    assert found.reasons == (When.RECOVERY,)
    assert not found.was_told


def test_recovery_that_was_not_sent_is_told_by_the_next_run() -> None:
    one = Notifier()
    one.hears(run("web"))
    assert one.reasons(run(number=1), is_sent=False) == ["recovery"]
    assert one.reasons(run(number=2)) == ["recovery"]
    assert one.reasons(run(number=3)) == []


def test_changed_failure_that_was_not_sent_is_told_again_when_it_changes_back() -> None:
    one = Notifier()
    one.hears(run("web"))
    assert one.reasons(run("web", "db", number=1), is_sent=False) == ["failure"]
    assert one.reasons(run("web", number=2)) == ["failure"]


@pytest.mark.parametrize("when", list(When))
def test_only_what_is_wanted_is_told(when: When) -> None:
    one = Notifier(frozenset((when,)))
    late = overview(domain("web", is_overdue=True))
    heard = [
        one.reasons(run("web")),
        one.reasons(run(number=1)),
        one.reasons(run(number=2), late),
        one.reasons(run(number=3, unusual=("The clock jumped.",)), late),
        one.reasons(run(number=4), late),
    ]
    only = {
        When.FAILURE: [["failure"], [], [], [], []],
        When.RECOVERY: [[], ["recovery"], [], [], []],
        When.OVERDUE: [[], [], ["overdue"], [], []],
        When.UNUSUAL: [[], [], [], ["unusual"], []],
        When.ALWAYS: [
            ["failure", "always"],
            ["recovery", "always"],
            ["overdue", "always"],
            ["unusual", "always"],
            ["always"],
        ],
    }
    assert heard == only[when]


def test_overdue_domain_is_told_once_and_its_end_once() -> None:
    one = Notifier()
    late, good = overview(domain("web", is_overdue=True), domain("db")), overview(domain("web"), domain("db"))
    assert one.reasons(None, late) == ["overdue"]
    assert one.reasons(None, late) == []
    found = one.hears(run(), good)
    assert found.reasons == (When.RECOVERY,)
    assert found.recovered == ("web",)
    assert one.reasons(None, late) == ["overdue"]


def test_second_overdue_domain_is_told_alone() -> None:
    one = Notifier()
    one.hears(None, overview(domain("web", is_overdue=True), domain("db")))
    found = one.hears(None, overview(domain("web", is_overdue=True), domain("db", is_overdue=True)))
    assert [state.name for state in found.overdue] == ["db"]


def test_domain_that_is_gone_is_forgotten_without_a_word() -> None:
    one = Notifier()
    one.hears(None, overview(domain("web", is_overdue=True)))
    assert one.reasons(None, overview(domain("db"))) == []
    assert one.told.overdue == frozenset()


def test_domains_of_jobs_that_are_not_looked_at_stay_as_they_are() -> None:
    one = Notifier()
    one.hears(None, overview(domain("web", is_overdue=True)))
    assert one.reasons(None, overview(domain("db", job="weekly"), jobs=["weekly"])) == []
    assert one.told.overdue == {"nightly/main/web"}


def test_jobs_of_others_are_not_told() -> None:
    one = Notifier(jobs=frozenset(("weekly",)))
    assert one.reasons(run("web"), overview(domain("web", is_overdue=True))) == []
    assert one.reasons(run("web", job="weekly")) == ["failure"]


def test_failures_of_two_jobs_are_separate() -> None:
    one = Notifier()
    assert one.reasons(run("web")) == ["failure"]
    assert one.reasons(run("web", job="weekly")) == ["failure"]
    assert one.reasons(run(job="weekly")) == ["recovery"]
    assert one.reasons(run("web")) == []


def test_unusual_that_was_not_sent_is_told_with_the_next_run() -> None:
    one = Notifier()
    jumped = run(unusual=("The clock jumped.",))
    assert one.reasons(jumped, is_sent=False) == ["unusual"]
    found = one.hears(run(number=1))
    assert found.unusual == ("The clock jumped.",)
    assert one.reasons(run(number=2)) == []


def test_what_stays_unusual_is_told_once_until_it_is_over() -> None:
    one = Notifier()
    future, jumped = "Backup B is of the future.", "The clock jumped."
    nights = [(jumped, future), (future,), (future,), (), (future,)]
    heard = [one.hears(run(number=night, unusual=seen)).unusual for night, seen in enumerate(nights)]
    assert heard == [(jumped, future), (), (), (), (future,)]
    assert one.hears(replace(run(number=9, unusual=(future,)), job="other")).unusual == (future,)
    assert one.hears(run(number=10, unusual=(future,))).unusual == ()


def test_unusual_that_stays_and_was_not_sent_is_told_once() -> None:
    one = Notifier()
    future = run(unusual=("Backup B is of the future.",))
    assert one.reasons(future, is_sent=False) == ["unusual"]
    assert one.hears(future).unusual == future.unusual
    assert one.reasons(future) == []


def test_unusual_change_has_the_name_of_its_domain() -> None:
    one = run()
    changed = replace(one.domains[0], unusual=("10 times as much changed.",))
    assert unusual_of(replace(one, domains=(changed,))) == ("web: 10 times as much changed.",)


def test_run_that_is_not_over_is_not_told() -> None:
    assert Notifier().reasons(run(outcome=Outcome.RUNNING, status=0)) == []


@pytest.mark.parametrize(
    ("outcome", "status", "bad"),
    [
        (Outcome.DONE, 0, False),
        (Outcome.DONE, 3, True),  # never hide a failed one
        (Outcome.SOME_FAILED, 3, True),
        (Outcome.FAILED, 7, True),
        (Outcome.INTERRUPTED, 0, True),
        (Outcome.RUNNING, 0, False),
    ],
)
def test_bad_run(outcome: Outcome, status: int, bad: bool) -> None:
    assert is_bad(run(outcome=outcome, status=status)) == bad


def test_every_bad_run_has_something_that_failed() -> None:
    step = Step(StepKind.VERIFY, Outcome.FAILED, None, None, 6, target="offsite")
    assert faults_of(run(steps=(step,))) == ("verify/offsite//failed/6",)
    assert faults_of(run(outcome=Outcome.INTERRUPTED, status=143)) == ("run/interrupted/143",)
    assert faults_of(run("web")) == ("backup//web/NO_SPACE",)


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(("web", "db"))), st.booleans()),
        max_size=12,
    )
)
def test_whoever_wants_failures_and_recoveries_knows_what_is_so(nights: list[tuple[set[str], bool]]) -> None:
    """After each night whose message was sent, and was due, the notifier knows what fails; nothing is told twice."""
    one, knows, heard_last = Notifier(), frozenset[str](), None
    for number, (failed, is_sent) in enumerate(nights):
        found = one.hears(run(*failed, number=number), is_sent=is_sent)
        if found.reasons and is_sent:
            assert frozenset(failed) != knows or heard_last == "unsent"
            knows, heard_last = frozenset(failed), "sent"
        elif found.reasons:
            heard_last = "unsent"
        else:
            assert frozenset(failed) == knows
