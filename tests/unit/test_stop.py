"""A signal sets a request; the work ends at its next step, and the handlers are restored."""

from __future__ import annotations

import os
import select
import signal
import threading
from pathlib import Path

import pytest

from vbackup.errors import InterruptedBySignalError
from vbackup.stop import SIGNALS, Stop, on_signals


def test_without_a_request_the_work_goes_on() -> None:
    Stop().check()


def test_request_ends_the_work_at_the_next_check() -> None:
    stop = Stop()
    stop.request(signal.SIGTERM)
    for _ in range(2):
        with pytest.raises(InterruptedBySignalError) as caught:
            stop.check()
        assert caught.value.signum == signal.SIGTERM


def test_first_signal_counts() -> None:
    stop = Stop()
    stop.request(signal.SIGTERM)
    stop.request(signal.SIGINT)
    with pytest.raises(InterruptedBySignalError, match="SIGTERM"):
        stop.check()


def test_request_ends_a_wait_for_a_descriptor() -> None:
    stop = Stop()
    with stop.descriptor() as fd:
        assert select.select([fd], [], [], 0)[0] == []
        for _ in range(100_000):  # more than a pipe takes
            stop.request(signal.SIGTERM)
        assert select.select([fd], [], [], 0)[0] == [fd]
    with stop.descriptor() as again:
        assert select.select([again], [], [], 0)[0] == [again]


def test_signal_ends_a_wait_before_its_handler_has_run() -> None:
    """One that comes when poll(2) has not begun interrupts nothing, and Python's handlers run after a wait only."""
    with on_signals(Stop()) as stop, stop.descriptor() as fd:
        signal.signal(signal.SIGINT, lambda _signum, _frame: None)  # as if it had not run yet
        signal.raise_signal(signal.SIGINT)
        assert select.select([fd], [], [], 0)[0] == [fd]
        assert stop.signum is None
    assert signal.set_wakeup_fd(-1) == -1


def test_request_of_a_program_is_as_one_to_terminate() -> None:
    stop = Stop()
    stop.request()
    with pytest.raises(InterruptedBySignalError, match="SIGTERM"):
        stop.check()


def test_request_ends_all_waits_of_all_threads() -> None:
    stop = Stop()
    with stop.descriptor() as one, stop.descriptor() as other:
        stop.request()
        assert sorted(select.select([one, other], [], [], 0)[0]) == sorted([one, other])
    with stop.descriptor() as late:
        assert select.select([late], [], [], 0)[0] == [late]


def test_request_of_a_thread_writes_to_no_other_file(tmp_path: Path) -> None:
    """A descriptor that was closed may be another file's by the time the request is written."""
    stop, path, is_over = Stop(), tmp_path / "file", threading.Event()

    def request() -> None:
        while not is_over.is_set():
            stop.request()

    thread = threading.Thread(target=request)
    thread.start()
    try:
        for _ in range(300):
            with stop.descriptor():
                pass
            with path.open("wb") as first, path.open("ab"):
                first.flush()
    finally:
        is_over.set()
        thread.join(10)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_becomes_a_request(number: signal.Signals) -> None:
    with on_signals(Stop()) as stop:
        os.kill(os.getpid(), number)
        with pytest.raises(InterruptedBySignalError) as caught:
            stop.check()
    assert caught.value.status == 128 + number


def test_signal_alone_raises_nothing() -> None:
    """It could interrupt between a step and the registration of its undo."""
    with on_signals(Stop()) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        reached = True
    assert reached
    assert stop.signum == signal.SIGTERM


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError), on_signals(Stop()):
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_ignored_signal_stays_ignored() -> None:
    """nohup vbackup backup ... &"""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_signals(Stop()) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)
