"""Runs are found again in the order in which they were made, whatever the clock said, and a dead one is interrupted."""

from __future__ import annotations

import json
import stat
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.runs.examples import STARTED, run, running
from vbackup.errors import BusyError, StorageError, UsageError
from vbackup.process import Process
from vbackup.runs import store as store_
from vbackup.runs.record import Outcome, Run
from vbackup.runs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def without_details(one: Run) -> Run:
    return replace(one, steps=tuple(replace(step, document=None) for step in one.steps))


def kept(store: Store, number: int) -> Run:
    begun = store.begin(running(started=STARTED + timedelta(days=number)))
    ended = replace(without_details(run(started=begun.started)), id=begun.id)
    store.end(ended)
    return ended


def of_dead_process(store: Store) -> Path:
    """Make what runs be the work of a process that has ended."""
    child = subprocess.Popen(["sleep", "60"])
    process = Process.of(child.pid)
    assert process is not None
    child.kill()
    child.wait()
    path = store.state / "runs" / "nightly" / "running.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "process": process.document()}))
    return path


def test_without_a_directory_there_is_nothing(store: Store) -> None:
    assert store.jobs() == []
    assert store.list("nightly") == []
    assert store.last("nightly") is None
    assert not store.state.exists()


def test_runs_are_listed_newest_first(store: Store) -> None:
    runs = [kept(store, number) for number in range(3)]
    assert store.list("nightly") == runs[::-1]
    assert store.list("nightly", 2) == runs[:0:-1]
    assert store.last("nightly") == runs[-1]
    assert store.jobs() == ["nightly"]


def test_a_clock_that_was_wrong_does_not_change_the_order(store: Store) -> None:
    kept(store, 365)
    now = kept(store, 1)
    assert store.last("nightly") == now


def test_runs_of_the_same_second_have_different_ids(store: Store) -> None:
    ids = [kept(store, 0).id for _ in range(3)]
    assert ids == ["20261130T010002Z", "20261130T010002Z-2", "20261130T010002Z-3"]
    assert [one.id for one in store.list("nightly")] == ids[::-1]


def test_a_run_at_work_is_the_last_one(store: Store) -> None:
    ended = kept(store, 0)
    begun = store.begin(running(started=STARTED + timedelta(days=1)))
    assert store.last("nightly") == without_details(begun)
    assert store.list("nightly") == [without_details(begun), ended]
    with pytest.raises(BusyError, match="Job nightly is running since 2026-12-01"):
        store.begin(running(started=STARTED + timedelta(days=2)))
    store.end(replace(begun, outcome=Outcome.DONE, ended=STARTED))
    assert [one.outcome for one in store.list("nightly")] == [Outcome.DONE, Outcome.SOME_FAILED]


def test_a_run_whose_process_is_gone_was_interrupted(store: Store) -> None:
    store.begin(running())
    path = of_dead_process(store)
    last = store.last("nightly")
    assert last is not None
    assert (last.outcome, last.ended, last.status) == (Outcome.INTERRUPTED, None, 1)
    assert last.steps[0].outcome is Outcome.INTERRUPTED
    assert path.exists()  # looking changes nothing
    begun = store.begin(running(started=STARTED + timedelta(days=1)))
    assert store.list("nightly") == [without_details(begun), last]


def test_an_ended_run_can_be_written_again(store: Store) -> None:
    """With what became of its messages."""
    first = kept(store, 0)
    kept(store, 1)
    store.end(replace(first, notices=("mail was refused",)))
    assert [one.notices for one in store.list("nightly")] == [run().notices, ("mail was refused",)]


def test_the_oldest_runs_are_forgotten(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_, "KEPT", 3)
    runs = [kept(store, number) for number in range(5)]
    assert store.list("nightly") == runs[:1:-1]
    names = sorted(path.name for path in (store.state / "runs" / "nightly").iterdir())
    assert [name[:6] for name in names] == ["000003", "000004", "000005"]


def test_a_record_that_cannot_be_read_is_left_out(store: Store) -> None:
    runs = [kept(store, number) for number in range(3)]
    [path] = (store.state / "runs" / "nightly").glob("000002-*.json")
    path.write_text("{")
    assert store.list("nightly", 2) == [runs[2], runs[0]]


@pytest.mark.parametrize("text", ["{", '{"schema": "vbackup.run/1"}'])
def test_a_damaged_record_of_a_run_at_work_stops_no_other(store: Store, text: str) -> None:
    ended = kept(store, 0)
    begun = store.begin(running(started=STARTED + timedelta(days=1)))
    (store.state / "runs" / "nightly" / "running.json").write_text(text)
    assert store.last("nightly") == ended
    assert store.begin(begun) == begun


def test_a_record_that_cannot_be_read_is_an_error_that_names_the_file(store: Store) -> None:
    (store.state / "runs" / "nightly" / "running.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"running\.json: it is a directory"):
        store.last("nightly")


def test_everything_is_for_its_owner_only(store: Store) -> None:
    kept(store, 0)
    store.begin(running(started=STARTED + timedelta(days=1)))
    for path in (store.state, *store.state.rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("job", ["", "..", "a/b", ".hidden", "a b", "x" * 65])
def test_no_job_has_a_name_that_leads_elsewhere(store: Store, job: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a job"):
        store.last(job)


def test_the_default_directory_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VBACKUP_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert store_.default_directory() == tmp_path / "vbackup"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert store_.default_directory() == Path("/var/lib/vbackup")
    monkeypatch.setenv("VBACKUP_STATE", "/elsewhere")
    assert store_.default_directory() == Path("/elsewhere")
