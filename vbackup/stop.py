"""Let a signal end the work at a safe place.

A handler that raises would strike between a step and the registration of its undo. Here the signal
only leaves a request; the work looks at it between its steps. Waits are short enough (vbackup.qemu.jobs)
for the request to be seen at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from vbackup.errors import InterruptedBySignalError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A request to stop; the first signal is the one that is told."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def request(self, signum: int) -> None:
        """Ask for the work to end. May be called from a signal handler or another thread."""
        if self.signum is None:
            self.signum = signum

    def check(self) -> None:
        """Raise InterruptedBySignalError if a stop was requested."""
        if self.signum is not None:
            raise InterruptedBySignalError(self.signum)


@contextmanager
def on_signals(stop: Stop, signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Stop]:
    """Turn signals into requests while the block runs. Main thread only (Python's own rule).

    A signal that is ignored stays ignored: nohup, or a shell's job in the background, has asked for it.
    """

    def request(signum: int, _frame: FrameType | None) -> None:
        stop.request(signum)

    heeded = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, request) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
