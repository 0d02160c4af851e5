"""Each of several domains has its own result, whatever happens to the others."""

from __future__ import annotations

import errno
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import Recorder
from tests.unit.builders import backup as a_backup
from vbackup.cli import batch as printed
from vbackup.domain.selection import Chosen
from vbackup.errors import BusyError, DomainNotFoundError, GroupError, InterruptedBySignalError, Status
from vbackup.operations import backup, batch
from vbackup.operations.backup import BackupRequest
from vbackup.operations.batch import Batch
from vbackup.report import Reporter
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

NAMES = ("a", "b", "c")


class Telling(Recorder):
    """A recorder that has the domain before each message."""

    def labelled(self, domain: str) -> Reporter:
        from vbackup.report import Labelled

        return Labelled(self, domain)


class FakeHost:
    """Counts the connections."""

    def __init__(self) -> None:
        self.opened = 0

    def another(self) -> Any:
        from contextlib import nullcontext

        self.opened += 1
        return nullcontext(self)

    def domain(self, name: str) -> None:
        raise DomainNotFoundError(name, "here", "look")


@pytest.fixture
def work(tmp_path: Path) -> Batch:
    host: Any = FakeHost()
    return Batch(BackupRequest("", wait_lock_s=0), host, Repository.create(tmp_path / "r"), Telling(), Stop())


def domains(*names: str) -> list[Chosen]:
    return [Chosen(name, f"uuid of {name}") for name in names]


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What happens to the backup of each domain: an exception, or something that is called."""
    told: dict[str, Any] = {}

    def run(request: BackupRequest, **_given: Any) -> Any:
        what = told.get(request.domain)
        if isinstance(what, Exception):
            raise what
        if what is not None:
            what()
        return a_backup(1, domain_name=request.domain)

    monkeypatch.setattr(backup, "run", run)
    return told


def test_failure_is_that_of_its_domain(work: Batch, behaviour: dict[str, Any]) -> None:
    busy = BusyError("busy")
    behaviour.update(b=busy)
    results = batch.run(work, domains(*NAMES), parallel=2)
    assert [(one.domain.name, one.error) for one in results] == [("a", None), ("b", busy), ("c", None)]
    assert [one.made.domain_name for one in results if one.made is not None] == ["a", "c"]
    assert work.reporter.warnings == ["b: busy"]  # type: ignore[attr-defined]
    assert work.host.opened == 3  # type: ignore[attr-defined]


def test_fault_of_ours_in_one_thread_is_told_and_ends_no_other(work: Batch, behaviour: dict[str, Any]) -> None:
    behaviour.update(a=KeyError("x"))
    results = batch.run(work, domains(*NAMES), parallel=1)
    assert "bug in vbackup" in str(results[0].error)
    assert [one.error for one in results[1:]] == [None, None]


def test_storage_that_is_gone_is_no_bug(work: Batch, behaviour: dict[str, Any]) -> None:
    behaviour.update(a=OSError(errno.EIO, "Input/output error", "/backup/x"))
    [error] = [one.error for one in batch.run(work, domains(*NAMES), parallel=1) if one.error is not None]
    assert (error.status, str(error)) == (
        Status.STORAGE,
        "Cannot access /backup/x: Input/output error. Its storage may be failing: look into the kernel log.",
    )


def test_order_is_that_of_the_domains_whoever_ends_first(work: Batch, behaviour: dict[str, Any]) -> None:
    others = threading.Event()
    behaviour.update(a=lambda: others.wait(10), c=others.set)
    assert [one.domain.name for one in batch.run(work, domains(*NAMES), parallel=3)] == list(NAMES)


def test_after_a_signal_no_more_are_begun(work: Batch, behaviour: dict[str, Any]) -> None:
    begun: list[str] = []
    behaviour.update(b=lambda: (begun.append("b"), work.stop.request(signal.SIGTERM)), c=lambda: begun.append("c"))
    results = batch.run(work, domains(*NAMES), parallel=1)
    assert begun == ["b"]
    assert [type(one.error) for one in results] == [type(None), type(None), InterruptedBySignalError]
    assert printed.status_of(results, is_group=False) == Status.SIGNAL + signal.SIGTERM


def test_no_more_threads_than_were_asked_for(work: Batch, behaviour: dict[str, Any]) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def count() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    behaviour.update(dict.fromkeys("abcdefgh", count))
    batch.run(work, domains(*"abcdefgh"), parallel=3)
    assert most == [3]


def test_group_fails_as_a_whole(work: Batch, behaviour: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(request: BackupRequest, *, moment: Any, **_given: Any) -> Any:
        moment.ready()
        if request.domain == "b":
            raise BusyError("busy")
        moment.copied()
        raise AssertionError("it was not all or nothing")

    monkeypatch.setattr(backup, "run", run)
    results = batch.run_group(work, domains(*NAMES))
    assert [type(one.error) for one in results] == [GroupError, BusyError, GroupError]
    assert printed.status_of(results, is_group=True) == Status.BUSY


def test_group_with_a_domain_that_is_not_there_is_not_begun(work: Batch, behaviour: dict[str, Any]) -> None:
    begun: list[str] = []
    behaviour.update(a=lambda: begun.append("a"))
    with pytest.raises(DomainNotFoundError, match="nobody"):
        batch.run_group(work, [*domains("a"), Chosen("nobody", None)])
    assert begun == []
