"""What the work tells while it runs; who shows it, and how, is the door's business.

The reporters of the command line are in vbackup.cli.reporters.
"""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Told of each step as it happens. Must not raise."""

    def step(self, message: str) -> None:
        """Something was done, as a short sentence."""

    def warning(self, message: str) -> None:
        """Something the administrator should know, though the work goes on."""

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """How far the work on disk ``dev`` is. Total may grow while it runs."""


class Labelling(Reporter, Protocol):
    """One that several domains at once tell, from a thread each."""

    def labelled(self, domain: str) -> Reporter:
        """What is told to the result is of that domain."""


class Labelled:
    """Puts the domain's name before what it tells (see Labelling)."""

    def __init__(self, reporter: Reporter, domain: str) -> None:
        self._reporter = reporter
        self._domain = domain

    def step(self, message: str) -> None:
        """See Reporter."""
        self._reporter.step(f"{self._domain}: {message}")

    def warning(self, message: str) -> None:
        """See Reporter."""
        self._reporter.warning(f"{self._domain}: {message}")

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""
        self._reporter.progress(f"{self._domain}/{dev}", done_bytes, total_bytes)


class Silent:
    """Tells nobody: for callers that only want the result."""

    def step(self, message: str) -> None:
        """See Reporter."""

    def warning(self, message: str) -> None:
        """See Reporter."""

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""

    def labelled(self, domain: str) -> Reporter:
        """See Labelling."""
        return self
