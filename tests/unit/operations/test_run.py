"""Which jobs are run, when, and one after the other; whatever became of them is on record."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import backup, commit
from tests.unit.operations.run_examples import BUSY, GOOD, NOW, PLACE, Site, config, job
from tests.unit.runs.examples import running
from vbackup import machine
from vbackup.config.calendar import Window
from vbackup.config.model import Job, Notifier, When
from vbackup.errors import InterruptedBySignalError, NoSpaceError, StorageError, UsageError, VbackupError
from vbackup.model import HostIdentity
from vbackup.notices import sending
from vbackup.notices.memory import NotKept
from vbackup.operations import run as operation
from vbackup.operations.run import Ran, RunRequest
from vbackup.operations.run_children import Ended
from vbackup.runs import attempts, lock
from vbackup.runs.record import Outcome, Run

DUE = RunRequest(only_due=True)
MAIL = Notifier("admin", PLACE, frozenset((When.FAILURE,)), mail_to=("root",))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def run(site: Site, *jobs: Job, request: RunRequest | None = None) -> Ran:
    return operation.run(request or RunRequest(), config(site.path, *jobs), site.world)


def ids(ran: Ran) -> list[str]:
    return [one.job for one in ran.runs]


def test_without_names_all_jobs_are_run(site: Site) -> None:
    ran = run(site, job("b"), job("a"))
    assert (ids(ran), ran.status) == (["b", "a"], 0)
    assert (ids(run(site, job("b"), job("a"), request=RunRequest(("a", "a"))))) == ["a"]
    assert [len(site.store.list(name)) for name in ("a", "b")] == [2, 1]


def test_an_unknown_job_is_refused_before_any_is_run(site: Site) -> None:
    with pytest.raises(UsageError, match=r"no job 'nightli'; the closest is 'nightly'\."):
        run(site, request=RunRequest(("nightly", "nightli")))
    with pytest.raises(UsageError, match=r"no job 'x'; there are: nightly\."):
        run(site, request=RunRequest(("x",)))
    assert site.steps.argvs == []


def test_a_configuration_without_jobs_is_refused(site: Site) -> None:
    empty: Any = config(site.path)
    empty.jobs.clear()
    with pytest.raises(UsageError, match="has no job: 'vbackup config init' makes one"):
        operation.run(RunRequest(), empty, site.world)


def test_a_job_that_fails_hides_no_other(site: Site) -> None:
    def broken(*_of_step: object) -> Ended:
        del site.steps.answers["backup"]
        return BUSY

    site.steps.answers["backup"] = broken
    ran = run(site, job("a"), job("b"))
    assert [one.outcome for one in ran.runs] == [Outcome.SOME_FAILED, Outcome.DONE]
    assert ran.status == 8


def test_a_bug_in_one_job_hides_no_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    of_job = lock.of_job

    def refuse(state: Path, one: str) -> Any:
        if one == "a":
            raise StorageError("The state directory is gone.")
        return of_job(state, one)

    monkeypatch.setattr(lock, "of_job", refuse)
    announced: list[Any] = []
    monkeypatch.setattr(sending, "announce", lambda made, *_rest, **_more: announced.append(made) or ())
    settings = config(site.path, job("a"), job("b"), notifiers={"admin": MAIL})
    ran = operation.run(RunRequest(), settings, site.world)
    assert ids(ran) == ["b"]
    [told, good] = announced
    assert (told.job, told.outcome, told.status, good.job) == ("a", Outcome.FAILED, 7, "b")
    assert told.steps[0].faults[0].message == "The state directory is gone."
    assert [(one.job, one.reason) for one in ran.not_run] == [("a", "The state directory is gone.")]
    assert ran.status == 7


def test_without_room_for_a_record_backups_are_made_and_that_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> Any:
        raise NoSpaceError("Cannot write the record: no space left.")

    for name in ("begin", "update", "end"):
        monkeypatch.setattr(type(site.store), name, full)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *_arguments: real(-1, b"", 0))  # the name of who has the lock
    ran = run(site)
    assert (ran.not_run, ran.status) == ((), 0)
    assert site.steps.kinds.count("backup") == 1
    assert any("The record of the run could not be written" in one for one in ran.runs[0].unusual)


def test_a_fault_that_keeps_jobs_from_being_run_is_told_for_each(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[Any] = []
    monkeypatch.setattr(
        sending, "announce", lambda made, *_rest, **_more: announced.append(made) or (f"{made.job} was not told.",)
    )
    settings = config(site.path, job("a"), notifiers={"admin": MAIL})
    fault = UsageError("The configuration has a fault.")
    assert operation.tell_fault(fault, (), settings, site.world) == ("a was not told.",)
    assert operation.tell_fault(fault, ("gone", "gone"), settings, site.world) == ("gone was not told.",)
    assert [(one.job, one.repository, one.status) for one in announced] == [
        ("a", str(site.path), 2),
        ("gone", "unknown", 2),
    ]
    assert operation.tell_fault(fault, ("a",), config(site.path, job("a")), site.world) == ()
    assert not site.store.jobs()


def test_only_what_is_due_is_run_and_that_once(site: Site) -> None:
    never = job("never", calendar=None)
    assert ids(run(site, job(), never, request=DUE)) == ["nightly"]
    again = run(site, job(), never, request=DUE)
    assert (again.runs, again.status) == ((), 0)
    assert [one.error for one in again.not_run] == [None, None]
    assert "has no calendar" in again.not_run[1].reason
    site.clock.forward(days=1)
    [made] = run(site, job(), request=DUE).runs
    assert made.scheduled == (NOW + timedelta(days=1)).replace(second=0)
    assert made.unusual == ()


def _full(*_arguments: object) -> Any:
    raise NoSpaceError("Cannot write the record: no space left.")


@pytest.mark.parametrize(
    ("changes", "host", "is_run"),
    [
        ({}, None, False),
        ({"domains": ("mail",)}, None, True),
        ({"connect": (), "domains": ()}, HostIdentity("elsewhere", "0" * 32), True),
        ({"connect": (), "domains": ()}, machine.this_host(), False),
        ({"connect": ("qemu+ssh://elsewhere/system",)}, HostIdentity("elsewhere", None), False),
    ],
)
def test_without_a_record_the_repository_says_whether_there_was_a_run(
    site: Site, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], host: HostIdentity | None, *, is_run: bool
) -> None:
    for name in ("begin", "update", "end"):
        monkeypatch.setattr(type(site.store), name, _full)
    monkeypatch.setattr(attempts.Attempts, "note", _full)
    commit(site.repository, backup(1, time=NOW - timedelta(hours=5), host=host))
    site.clock.forward(minutes=15)
    assert ids(run(site, job(**changes), request=DUE)) == ["nightly"]  # the backup is of the day before
    commit(site.repository, backup(2, time=NOW + timedelta(minutes=1), host=host))
    again = run(site, job(**changes), request=DUE)
    assert (len(again.runs), again.status) == (int(is_run), 0)
    if not is_run:
        [missed] = again.not_run
        assert missed.error is None
        assert "is not run again before its next one. Its runs cannot be put on record: Cannot" in missed.reason
    assert ids(run(site, job(**changes))) == ["nightly"]  # by hand


@pytest.fixture
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "directory", lambda: tmp_path / "runtime")


@pytest.mark.usefixtures("_runtime")
def test_without_a_record_a_job_that_fails_is_tried_once_for_each_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("begin", "update", "end"):
        monkeypatch.setattr(type(site.store), name, _full)
    site.steps.answers["backup"] = BUSY
    assert run(site, request=DUE).status == 8
    for _ in range(3):
        site.clock.forward(minutes=15)
        again = run(site, request=DUE)
        assert (again.runs, again.status) == ((), 0)
    assert again.not_run[0].reason.startswith("Job nightly was run at ")
    site.clock.forward(days=1)
    assert ids(run(site, request=DUE)) == ["nightly"]
    assert ids(run(site)) == ["nightly"]  # by hand


@pytest.mark.usefixtures("_runtime")
def test_without_a_record_a_run_that_a_signal_ended_is_made_up_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("begin", "update", "end"):
        monkeypatch.setattr(type(site.store), name, _full)

    def stopped(*_of_step: object) -> Ended:
        site.stop.request(signal.SIGTERM)
        return Ended(143, None)

    site.steps.answers["backup"] = stopped
    assert run(site, request=DUE).status == 143
    site.stop.signum = None
    site.steps.answers["backup"] = BUSY
    assert ids(run(site, request=DUE)) == ["nightly"]
    assert ids(run(site, request=DUE)) == []


@pytest.mark.usefixtures("_runtime")
def test_a_state_directory_that_cannot_be_used_is_told_once_for_each_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[Any] = []
    monkeypatch.setattr(sending, "announce", lambda made, *_rest, **_more: announced.append(made) or ())
    settings = config(site.path, job(), notifiers={"admin": MAIL})
    site.store.state.parent.mkdir(parents=True, exist_ok=True)
    site.store.state.write_text("no directory")
    statuses = []
    for _ in range(4):
        statuses.append(operation.run(DUE, settings, site.world).status)
        site.clock.forward(minutes=15)
    assert (statuses, len(announced)) == ([7, 7, 7, 7], 1)  # no backup was made: the service stays failed
    assert operation.run(RunRequest(), settings, site.world).status == 7  # who asks is answered
    site.clock.forward(days=1)
    assert (operation.run(DUE, settings, site.world).status, len(announced)) == (7, 3)
    site.store.state.unlink()
    assert ids(operation.run(DUE, settings, site.world)) == ["nightly"]


@pytest.mark.usefixtures("_runtime")
def test_that_a_job_cannot_begin_is_told_until_it_is_sent_and_once_for_each_cause(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[Run] = []
    unsent: tuple[str, ...] = ()
    fault: VbackupError = StorageError("The state directory is gone.")

    def refuse(*_arguments: object) -> Any:
        raise fault

    def announce(made: Run, *_rest: object, **_more: object) -> tuple[str, ...]:
        announced.append(made)
        return unsent

    def call() -> tuple[int, int]:
        """The exit status, and how many messages there were."""
        announced.clear()
        site.clock.forward(minutes=15)
        return operation.run(DUE, settings, site.world).status, len(announced)

    monkeypatch.setattr(lock, "of_job", refuse)
    monkeypatch.setattr(sending, "announce", announce)
    settings = config(site.path, job(), notifiers={"admin": MAIL})
    unsent = ("Notifier admin could not be told.",)
    assert [call(), call()] == [(7, 1), (7, 1)]  # the network is down
    unsent = (NotKept("What notifier admin was told cannot be kept."),)
    assert [call(), call()] == [(7, 1), (7, 0)]
    unsent, fault = (), StorageError("The state directory is of somebody else.")
    assert [call(), call()] == [(7, 1), (7, 0)]


@pytest.mark.usefixtures("_runtime")
def test_a_signal_while_a_job_waits_is_not_noted_as_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_more: object) -> Any:
        raise InterruptedBySignalError(signal.SIGTERM)

    monkeypatch.setattr(lock, "held", interrupted)
    announced: list[Run] = []
    monkeypatch.setattr(sending, "announce", lambda made, *_rest, **_more: announced.append(made) or ())
    ran = operation.run(DUE, config(site.path, job(), notifiers={"admin": MAIL}), site.world)
    assert (announced, [one.error is None for one in ran.not_run]) == ([], [False])
    assert not (tmp_path / "runtime" / "attempts").exists()


def test_a_missed_run_is_made_up_for_and_says_so(site: Site) -> None:
    run(site, request=DUE)
    site.clock.forward(days=2, hours=7)
    [made] = run(site, request=DUE).runs
    assert "was missed; this one makes up for it." in made.unusual[0]
    assert site.reporter.warnings == list(made.unusual)


def test_a_run_that_was_killed_is_made_up_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.store.begin(running(started=NOW))
    monkeypatch.setattr("vbackup.process.Process.lives", False)
    site.clock.forward(hours=3)
    [made] = run(site, request=DUE).runs
    assert "did not end; this one makes up for it." in made.unusual[0]
    assert [one.outcome for one in site.store.list("nightly")] == [Outcome.DONE, Outcome.INTERRUPTED]


def test_a_run_that_a_signal_ended_is_made_up_for(site: Site) -> None:
    def stopped(*_of_step: object) -> Ended:
        site.stop.request(signal.SIGTERM)
        return Ended(143, None)

    site.steps.answers["backup"] = stopped
    ran = run(site, job("a"), job("b"), request=DUE)
    assert (ids(ran), ran.status) == (["a"], 143)
    assert ran.runs[0].ended is not None
    site.stop.signum = None
    del site.steps.answers["backup"]
    assert ids(run(site, job("a"), job("b"), request=DUE)) == ["a", "b"]


def test_a_clock_that_jumps_is_unusual_and_removes_nothing(site: Site) -> None:
    run(site)
    site.clock.forward(days=365)
    [made] = run(site).runs
    assert "the clock is wrong" in made.unusual[0]
    assert site.steps.kinds.count("prune") == 1
    site.clock.forward(days=-365)
    [made] = run(site).runs
    assert "the clock has been set back" in made.unusual[0]
    assert site.steps.kinds.count("prune") == 1
    run(site)
    assert site.steps.kinds.count("prune") == 2


def test_a_clock_that_stays_wrong_removes_nothing_for_as_long_as_it_does(site: Site) -> None:
    """Nights: one good, four with a clock that is a year ahead, and then it is right."""

    def night(days: float, request: RunRequest | None = None) -> Run:
        site.clock.forward(days=days)
        [made] = run(site, request=request).runs
        return made

    def prunes() -> int:
        return site.steps.kinds.count("prune")

    assert night(0).trusted is None
    good = site.clock.now
    wrong = [night(365), *(night(1) for _ in range(3))]
    assert (prunes(), {one.trusted for one in wrong}) == (1, {good})
    assert "the machine was off for long, or the clock is wrong" in wrong[0].unusual[0]
    advice = "Set it right; if it is right, 'vbackup run nightly --accept-clock' says so."
    assert all(one.unusual[0].endswith(advice) for one in wrong)
    assert len({one.unusual for one in wrong}) == 1  # the same words, which are told once
    back = night(-364)
    assert ("has been set back" in back.unusual[0], back.trusted, prunes()) == (True, None, 1)
    assert night(1).unusual == ()
    assert prunes() == 2


def test_the_advice_for_a_job_with_a_window_works_at_any_time(site: Site) -> None:
    opened = NOW.astimezone().time().replace(minute=0, second=0)
    windowed = job(window=Window(opened, (NOW + timedelta(hours=3)).astimezone().time().replace(minute=0, second=0)))
    run(site, windowed)
    site.clock.forward(days=60)
    [made] = run(site, windowed).runs
    assert made.unusual[0].endswith("'vbackup run nightly --accept-clock --window any' says so.")
    site.clock.forward(hours=12)
    by_hand = RunRequest(("nightly",), accepts_clock=True, changed=(replace(windowed, window=None),))
    assert ids(run(site, windowed, request=by_hand)) == ["nightly"]


@pytest.mark.parametrize("days", [-365, 60])
def test_who_has_looked_at_the_clock_says_that_it_is_right(site: Site, days: float) -> None:
    """The earlier runs were those with a wrong clock, or the machine was off for two months."""
    run(site)
    site.clock.forward(days=days)
    for _ in range(3):
        run(site)
        site.clock.forward(days=1)
    assert site.steps.kinds.count("prune") == 1
    [made] = run(site, request=RunRequest(accepts_clock=True)).runs
    assert (made.unusual, made.trusted, site.steps.kinds.count("prune")) == ((), None, 2)
    site.clock.forward(days=1)
    [made] = run(site).runs
    assert (made.unusual, site.steps.kinds.count("prune")) == ((), 3)


def test_a_run_that_was_killed_in_doubt_leaves_the_doubt(site: Site) -> None:
    run(site)
    good = site.clock.now
    site.clock.forward(days=365)
    site.store.end(replace(run(site).runs[0], outcome=Outcome.INTERRUPTED))
    site.clock.forward(days=1)
    [made] = run(site).runs
    assert (made.trusted, site.steps.kinds.count("prune")) == (good, 1)


def test_a_run_that_only_waited_leaves_the_doubt(site: Site) -> None:
    """Nights: one good, one with a clock that is three months ahead, one busy, and the next."""
    run(site)
    good = site.clock.now
    site.clock.forward(days=90)
    run(site)
    site.clock.forward(days=1)
    with lock.held(site.store.state, site.path, job="other", wait_s=0, reporter=site.reporter, stop=site.stop):
        [busy] = run(site, request=RunRequest(wait_s=0)).runs
    assert (busy.status, busy.trusted) == (8, good)
    site.clock.forward(days=1)
    [made] = run(site).runs
    assert (made.trusted, site.steps.kinds.count("prune")) == (good, 1)


def test_a_clock_that_jumps_before_a_run_that_only_waited_is_noticed_by_the_next(site: Site) -> None:
    run(site)
    good = site.clock.now
    site.clock.forward(days=90)
    with lock.held(site.store.state, site.path, job="other", wait_s=0, reporter=site.reporter, stop=site.stop):
        [busy] = run(site, request=RunRequest(wait_s=0)).runs
        assert busy.trusted == good
        site.clock.forward(days=1)
        assert run(site, request=RunRequest(wait_s=0)).runs[0].trusted == good
        site.clock.forward(days=1)
        [made] = run(site, request=RunRequest(wait_s=0, accepts_clock=True)).runs
        assert made.trusted is None  # somebody has looked
    site.store.end(replace(made, trusted=good))
    site.clock.forward(days=1)
    [made] = run(site).runs
    assert (made.trusted, site.steps.kinds.count("prune")) == (good, 1)


def test_a_closed_window_is_no_error_for_a_timer_only(site: Site) -> None:
    later = (NOW + timedelta(hours=2)).astimezone().time().replace(minute=0, second=0)
    end = (NOW + timedelta(hours=4)).astimezone().time().replace(minute=0, second=0)
    windowed = job(window=Window(later, end))
    [missed] = run(site, windowed).not_run
    assert missed.reason.startswith("The window of job nightly is closed: it opens at ")
    assert run(site, windowed).status == 8
    assert run(site, windowed, request=DUE).status == 0
    assert site.steps.argvs == []
    site.clock.forward(hours=3)
    assert ids(run(site, windowed, request=DUE)) == ["nightly"]
    [until] = [word for word in site.steps.argvs[0] if word.startswith("--until=")]
    assert end.isoformat() in until


def test_a_job_that_is_running_is_not_run_again(site: Site) -> None:
    with lock.of_job(site.store.state, "nightly"):
        ran = run(site)
        assert (ran.status, ran.not_run[0].reason[:22]) == (8, "Job nightly is running")
        assert run(site, request=DUE).status == 0
    assert site.store.list("nightly") == []


def test_two_jobs_work_on_a_repository_one_after_the_other(site: Site) -> None:
    with lock.held(site.store.state, site.path, job="other", wait_s=0, reporter=site.reporter, stop=site.stop):
        ran = run(site, request=RunRequest(wait_s=0))
        assert ran.status == 8
        [made] = ran.runs
        assert made.outcome is Outcome.FAILED
        assert made.steps[0].faults[0].message.startswith("The run of job other (pid ")
    assert [one.status for one in site.store.list("nightly")] == [8]
    assert run(site).status == 0


def test_a_run_that_waits_does_not_begin_after_its_window(site: Site) -> None:
    opened = NOW.astimezone().time().replace(minute=0, second=0)
    windowed = job(window=Window(opened, (NOW + timedelta(hours=1)).astimezone().time().replace(minute=0, second=0)))
    has, may_end = threading.Event(), threading.Event()

    def work() -> None:
        with lock.held(site.store.state, site.path, job="other", wait_s=0, reporter=site.reporter, stop=site.stop):
            has.set()
            may_end.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    has.wait(20)
    site.reporter.step = lambda _message: (site.clock.forward(hours=2), may_end.set())  # type: ignore[assignment,method-assign]
    [missed] = run(site, windowed).not_run
    thread.join()
    assert missed.reason.startswith("The window of job nightly is closed")
    assert site.steps.argvs == []


def test_a_job_can_be_another_for_one_run(site: Site) -> None:
    run(site, request=RunRequest(("nightly",), changed=(job(options={}, copy_to=(), domains=("db-1",)),)))
    assert site.steps.kinds == ["backup"]
    assert site.steps.argvs[0][-2:] == ("--", "db-1")
    [kept] = site.path.glob("config-*.toml")
    assert 'copy-to = ["offsite"]' in kept.read_text()  # what is kept is not of one run


def test_a_run_of_some_domains_is_on_record_as_that(site: Site) -> None:
    for changed, is_partial in ((job(domains=("web",)), True), (job(exclude=("x",)), True), (job(copy_to=()), False)):
        [made] = run(site, job(), request=RunRequest(("nightly",), changed=(changed,))).runs
        assert made.is_partial is is_partial
        last = site.store.last("nightly")
        assert last is not None
        assert last.is_partial is is_partial


def test_record_is_what_the_answer_has_but_for_documents(site: Site) -> None:
    [made] = run(site).runs
    assert made.steps[0].document == GOOD["backup"]
    kept = site.store.last("nightly")
    assert kept is not None
    assert kept.steps[0].document is None
    assert (kept.id, kept.outcome, kept.status, kept.ended) == (made.id, made.outcome, made.status, made.ended)
