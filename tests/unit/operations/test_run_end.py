"""After the steps: the record, metrics, the report and messages, and none of them can undo what was done."""

from __future__ import annotations

import json
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.operations.run_examples import BUSY, GOOD, PLACE, Site, config, job
from vbackup.config.model import Config, Notifier, Secret, When
from vbackup.errors import MissingPackageError, StorageError
from vbackup.notices import sending
from vbackup.operations import metrics, run, status
from vbackup.operations.run import Ran, RunRequest
from vbackup.operations.run_children import Ended
from vbackup.runs.record import Outcome, StepKind

PING = Notifier("ops", PLACE, frozenset((When.ALWAYS,)), ping=Secret(file=Path("/nonexistent")))
MAIL = Notifier("admin", PLACE, frozenset((When.FAILURE,)), mail_to=("root",))


class Announcements:
    """Stands for what tells people."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []
        self.answer: Callable[[str], tuple[str, ...]] = lambda _phase: ()
        self.tail = ""

    def __call__(
        self, made: Any, overview: Any, _config: Config, _memory: Any, *, phase: str, log_tail: str, reporter: Any
    ) -> tuple[str, ...]:
        assert reporter is not None
        self.calls.append((phase, made, overview))
        self.tail = log_tail
        return self.answer(phase)


@pytest.fixture
def announcements(monkeypatch: pytest.MonkeyPatch) -> Announcements:
    made = Announcements()
    monkeypatch.setattr(sending, "announce", made)
    return made


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    # libvirt is asked by the tests of operations.status.
    original = status.gather

    def gather(request: Any, config_: Config, **more: Any) -> Any:
        return original(request, config_, **more, ask=lambda _uri, _known: ())

    monkeypatch.setattr(status, "gather", gather)
    return Site(tmp_path)


def do(site: Site, **settings: Any) -> Ran:
    return run.run(RunRequest(), config(site.path, job(), **settings), site.world)


def by_name(*notifiers: Notifier) -> dict[str, Notifier]:
    return {one.name: one for one in notifiers}


def test_metrics_and_report_are_steps_and_have_this_run(site: Site, tmp_path: Path) -> None:
    site.steps.answers["verify"] = BUSY
    files = {name: tmp_path / "out" / name for name in ("vbackup.prom", "report.html", "report.txt")}
    (tmp_path / "out").mkdir()
    [made] = do(
        site,
        metrics_file=files["vbackup.prom"],
        report_html=files["report.html"],
        report_text=files["report.txt"],
    ).runs
    assert [(step.kind, step.outcome) for step in made.steps[-2:]] == [
        (StepKind.METRICS, Outcome.DONE),
        (StepKind.REPORT, Outcome.DONE),
    ]
    assert made.status == 8
    assert 'job="nightly"' in files["vbackup.prom"].read_text()
    assert files["report.html"].read_text().startswith("<!DOCTYPE html>")
    assert "nightly" in files["report.txt"].read_text()
    # node-exporter reads as another user; the report has more.
    assert [stat.S_IMODE(path.stat().st_mode) for path in files.values()] == [0o644, 0o600, 0o600]
    kept = site.store.last("nightly")
    assert kept is not None
    assert [step.kind for step in kept.steps] == [step.kind for step in made.steps]


def test_what_cannot_be_written_is_a_step_that_failed(site: Site, tmp_path: Path) -> None:
    [made] = do(site, metrics_file=tmp_path / "gone" / "vbackup.prom").runs
    assert made.steps[-1].outcome is Outcome.FAILED
    assert (made.status, made.outcome) == (7, Outcome.SOME_FAILED)
    assert "Cannot write" in made.steps[-1].faults[0].message


def test_a_missing_package_is_the_fault_of_its_step(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_path: Path, _overview: object) -> None:
        raise MissingPackageError("prometheus_client", "metrics", "metrics")

    monkeypatch.setattr(metrics, "write", missing)
    [made] = do(site, metrics_file=tmp_path / "vbackup.prom", report_text=tmp_path / "report.txt").runs
    assert [step.outcome for step in made.steps[-2:]] == [Outcome.FAILED, Outcome.DONE]


def test_a_state_that_cannot_be_found_out_is_a_fault_and_the_run_is_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announcements: Announcements
) -> None:
    def broken(*_arguments: object, **_more: object) -> Any:
        raise StorageError("Nothing is known.")

    monkeypatch.setattr(status, "gather", broken)
    [made] = do(site, notifiers=by_name(MAIL), metrics_file=tmp_path / "vbackup.prom").runs
    assert [fault.message for fault in made.steps[-1].faults] == ["Nothing is known."]
    assert [(phase, overview) for phase, _, overview in announcements.calls] == [("end", None)]


def test_people_are_told_at_the_end_and_servers_also_at_the_start(site: Site, announcements: Announcements) -> None:
    site.steps.answers["copy"] = BUSY
    [made] = do(site, notifiers=by_name(PING, MAIL)).runs
    assert [phase for phase, _, _ in announcements.calls] == ["start", "end"]
    (_, begun, nothing), (_, ended, overview) = announcements.calls
    assert (begun.outcome, nothing) == (Outcome.RUNNING, None)
    assert (ended.outcome, ended.status) == (Outcome.SOME_FAILED, 8)
    assert ended.steps[0].document == GOOD["backup"]
    assert [one.name for one in overview.jobs] == ["nightly"]
    assert overview.jobs[0].last_run.id == ended.id
    assert "Job nightly: backing up." in announcements.tail
    assert made.notices == ()


def test_without_a_ping_nobody_is_told_at_the_start(site: Site, announcements: Announcements) -> None:
    do(site, notifiers=by_name(MAIL))
    assert [phase for phase, _, _ in announcements.calls] == ["end"]
    announcements.calls.clear()
    do(site)
    assert announcements.calls == []


def test_what_was_not_sent_is_in_the_record_and_not_in_the_status(site: Site, announcements: Announcements) -> None:
    announcements.answer = lambda phase: (f"{phase}: it was refused.",)
    ran = do(site, notifiers=by_name(PING))
    assert ran.status == 0
    assert ran.runs[0].notices == ("start: it was refused.", "end: it was refused.")
    kept = site.store.last("nightly")
    assert kept is not None
    assert kept.notices == ran.runs[0].notices
    assert len(site.store.list("nightly")) == 1


def test_a_run_that_was_stopped_does_not_wait_for_libvirt(
    site: Site, announcements: Announcements, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    original = status.gather

    def gather(request: Any, *arguments: Any, **more: Any) -> Any:
        requests.append(request)
        return original(request, *arguments, **more)

    def stopped(*_of_step: object) -> Ended:
        site.stop.request(signal.SIGTERM)
        return Ended(143, None)

    monkeypatch.setattr(status, "gather", gather)
    site.steps.answers["backup"] = stopped
    assert do(site, notifiers=by_name(MAIL)).status == 143
    assert [request.is_offline for request in requests] == [True]
    assert announcements.calls[-1][1].outcome is Outcome.INTERRUPTED


def test_a_signal_after_the_steps_makes_no_good_run_an_interrupted_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "write", lambda *_arguments: site.stop.request(signal.SIGTERM))
    ran = do(site, metrics_file=tmp_path / "vbackup.prom")
    assert (ran.runs[0].outcome, ran.runs[0].status, ran.status) == (Outcome.DONE, 0, 143)
    last = site.store.last("nightly")
    assert last is not None
    assert last.outcome is Outcome.DONE


def test_a_record_that_cannot_be_written_is_unusual_and_is_told(site: Site, announcements: Announcements) -> None:
    def full(*_of_step: object) -> Ended:
        for path in (site.store.state / "runs" / "nightly").iterdir():
            path.unlink()
        (site.store.state / "runs" / "nightly").rmdir()
        (site.store.state / "runs" / "nightly").write_text("no directory")
        return Ended(0, GOOD["audit"])

    site.steps.answers["audit"] = full
    [made] = do(site, notifiers=by_name(MAIL)).runs
    assert made.status == 0
    assert any("could not be written" in sentence for sentence in made.unusual)
    assert announcements.calls[-1][1].unusual == made.unusual


def test_the_record_is_json_for_others(site: Site) -> None:
    do(site)
    [path] = (site.store.state / "runs" / "nightly").glob("000001-*.json")
    assert json.loads(path.read_text())["schema"] == "vbackup.run/1"
    assert not (site.store.state / "runs" / "nightly" / "running.json").exists()
    assert list((site.store.state / "run.lock.d").iterdir())
