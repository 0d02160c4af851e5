"""One run at a time has a repository, by whatever path; another one waits, says for whom, and can be stopped."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup.errors import BusyError, InterruptedBySignalError, StorageError
from vbackup.runs import lock
from vbackup.stop import Stop


def test_a_second_run_does_not_get_the_repository(tmp_path: Path, recorder: Recorder) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (tmp_path / "link").symlink_to(repository)
    state = tmp_path / "state"
    with lock.held(state, repository, job="nightly", wait_s=0, reporter=recorder, stop=Stop()):
        expected = rf"The run of job nightly \(pid {os.getpid()}\) is working on {tmp_path / 'link'}"
        with (
            pytest.raises(BusyError, match=expected) as raised,
            lock.held(state, tmp_path / "link", job="weekly", wait_s=0, reporter=recorder, stop=Stop()),
        ):
            pytest.fail("both have it")
        assert raised.value.status == 8
        with lock.held(state, tmp_path / "other", job="weekly", wait_s=0, reporter=recorder, stop=Stop()):
            pass
    with lock.held(state, repository, job="weekly", wait_s=0, reporter=recorder, stop=Stop()):
        pass
    assert not list(repository.iterdir())


def test_a_second_run_waits_until_the_first_has_ended(tmp_path: Path, recorder: Recorder) -> None:
    has, may_end, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with lock.held(tmp_path, tmp_path, job="first", wait_s=0, reporter=Recorder(), stop=Stop()):
            has.set()
            may_end.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    has.wait(10)
    threading.Timer(0.3, may_end.set).start()
    with lock.held(tmp_path, tmp_path, job="second", wait_s=10, reporter=recorder, stop=Stop()):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert [message for message in recorder.steps if "waiting up to 10 s" in message]


def test_a_signal_ends_the_wait(tmp_path: Path, recorder: Recorder) -> None:
    stop = Stop()
    with lock.held(tmp_path, tmp_path, job="first", wait_s=0, reporter=recorder, stop=Stop()):
        threading.Timer(0.2, stop.request).start()
        with (
            pytest.raises(InterruptedBySignalError),
            lock.held(tmp_path, tmp_path, job="second", wait_s=60, reporter=recorder, stop=stop),
        ):
            pytest.fail("both have it")


def test_a_filesystem_without_locks_is_told_with_what_to_do(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for locked in (
        lock.of_job(tmp_path, "nightly"),
        lock.held(tmp_path, tmp_path, job="nightly", wait_s=60, reporter=recorder, stop=Stop()),
    ):
        with pytest.raises(StorageError, match=r"Cannot lock .*VBACKUP_STATE.*: No locks available"), locked:
            pytest.fail("nobody has it")
