"""Keep the end of what a run reports, for the messages about it, and pass everything on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime

from vbackup.report import Labelling, Phase, Reporter

#: How many lines are kept.
LINES = 200


class Log:
    """A reporter that keeps the last lines. Any thread may use it."""

    def __init__(self, reporter: Labelling, now: Callable[[], datetime]) -> None:
        self._reporter = reporter
        self._now = now
        self._lines: deque[str] = deque(maxlen=LINES)
        self._lock = threading.Lock()

    @property
    def tail(self) -> str:
        """The last lines, each with the local time."""
        with self._lock:
            return "\n".join(self._lines)

    def step(self, message: str) -> None:
        """Keep the step, and pass it on."""
        self.keep(message)
        self._reporter.step(message)

    def warning(self, message: str) -> None:
        """Keep the warning, and pass it on."""
        self.keep(f"warning: {message}")
        self._reporter.warning(message)

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Pass the progress on."""
        self._reporter.progress(dev, phase, done_bytes, total_bytes)

    def labelled(self, domain: str) -> Reporter:
        """Return a reporter for one domain, whose lines are kept with its name."""
        return _OfDomain(self, domain, self._reporter.labelled(domain))

    def keep(self, line: str) -> None:
        """Keep a line."""
        with self._lock:
            self._lines.append(f"{self._now().astimezone():%H:%M:%S} {line}")


class _OfDomain:
    def __init__(self, log: Log, domain: str, reporter: Reporter) -> None:
        self._log, self._domain, self._reporter = log, domain, reporter

    def step(self, message: str) -> None:
        self._log.keep(f"{self._domain}: {message}")
        self._reporter.step(message)

    def warning(self, message: str) -> None:
        self._log.keep(f"warning: {self._domain}: {message}")
        self._reporter.warning(message)

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        self._reporter.progress(dev, phase, done_bytes, total_bytes)
