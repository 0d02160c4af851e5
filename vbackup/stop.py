"""Let a signal end the work at a safe point.

A handler that raises could interrupt between a step and the registration of its undo. Here the signal only sets a
request, which the work checks between its steps. Waits are short (vbackup.qemu.jobs), so it is noticed at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vbackup.errors import InterruptedBySignalError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A request to stop. If several signals arrive, the first one counts."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._writing: int | None = None

    def request(self, signum: int) -> None:
        """Request a stop for signal ``signum``. Can be called from a signal handler or another thread."""
        if self.signum is None:
            self.signum = signum
        if self._writing is not None:
            with contextlib.suppress(BlockingIOError):  # enough requests are in it
                os.write(self._writing, b"\0")

    def check(self) -> None:
        """Raise InterruptedBySignalError if a stop was requested."""
        if self.signum is not None:
            raise InterruptedBySignalError(self.signum)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Yield a descriptor that poll(2) finds readable when a stop is requested, for a wait without a limit.

        Python resumes a system call after the handler of a signal has run (PEP 475), which then returns at once.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._writing = writing
        try:
            if self.signum is not None:
                self.request(self.signum)
            yield reading
        finally:
            self._writing = None
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
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
