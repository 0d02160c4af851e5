"""Let a signal end the work at a safe point.

A handler that raises could interrupt between a step and the registration of its undo. Here the signal only sets a
request, which the work checks between its steps. Waits are short (vbackup.qemu.jobs), so it is noticed at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vbackup.errors import InterruptedBySignalError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A request to stop, which may be for several threads. If several signals arrive, the first one counts."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.heeds_signals = False  #: signals are turned into requests (``on_signals``)
        self._writing: list[int] = []
        # Nothing is written to a descriptor that another thread has closed, and that may be another file by now.
        # Reentrant, as the handler of a signal may run in the thread that has it.
        self._lock = threading.RLock()

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Request a stop for signal ``signum``. Can be called from a signal handler or another thread, and repeatedly.

        It returns at once; what is to stop raises InterruptedBySignalError soon after, when it has undone its work.
        """
        with self._lock:
            if self.signum is None:
                self.signum = signum
            for writing in self._writing:
                with contextlib.suppress(BlockingIOError):  # enough requests are in it
                    os.write(writing, b"\0")

    def check(self) -> None:
        """Raise InterruptedBySignalError if a stop was requested."""
        if self.signum is not None:
            raise InterruptedBySignalError(self.signum)

    @contextmanager
    def _woken(self, writing: int) -> Iterator[None]:
        """Let the kernel's signal itself write: one that comes just before poll(2) begins interrupts nothing any more.

        Its handler, which is Python code, would run only when the wait has ended.
        """
        if not self.heeds_signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Yield a descriptor that poll(2) finds readable when a stop is requested, for a wait without a limit.

        Python resumes a system call after the handler of a signal has run (PEP 475), which then returns at once.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with self._lock:
            self._writing.append(writing)
        try:
            with self._woken(writing):
                if self.signum is not None:
                    self.request(self.signum)
                yield reading
        finally:
            with self._lock:
                self._writing.remove(writing)
                os.close(writing)
            os.close(reading)


@contextmanager
def on_signals(stop: Stop) -> Iterator[Stop]:
    """Turn SIGNALS into requests to ``stop`` while the block runs. Main thread only (a rule of Python's).

    Ignored signals stay ignored, as nohup and shells with background jobs intend.
    """

    def request(signum: int, _frame: FrameType | None) -> None:
        stop.request(signum)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, request) for number in handled}
    stop.heeds_signals = True
    try:
        yield stop
    finally:
        stop.heeds_signals = False
        for number, handler in earlier.items():
            signal.signal(number, handler)
