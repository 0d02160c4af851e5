"""Reporters: what an operation tells its caller while it runs.

The reporters of the command line are in vbackup.cli.reporters and vbackup.cli.terminal.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Phase(Enum):
    """What is done with a disk while its progress is reported."""

    COPY = "copy"  #: QEMU copies the blocks of the disk to its target
    CHECK = "check"  #: images are read, to digest them or to compare them with their digests
    WRITE = "write"  #: a restored image is written


class Reporter(Protocol):
    """Receives the steps, warnings and progress of an operation. Its methods must not raise."""

    def step(self, message: str) -> None:
        """Receive a short sentence about something that was done."""

    def warning(self, message: str) -> None:
        """Receive something that the administrator should know, although the operation goes on."""

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Receive how far this phase of the work on disk ``dev`` is. The total may grow."""


class Labelling(Reporter, Protocol):
    """A reporter for several domains at once, each in its own thread."""

    def labelled(self, domain: str) -> Reporter:
        """Return a reporter for that domain."""


class Labelled:
    """Passes everything on, with the domain's name in front."""

    def __init__(self, reporter: Reporter, domain: str) -> None:
        self._reporter = reporter
        self._domain = domain

    def step(self, message: str) -> None:
        """Pass the step on as "DOMAIN: message"."""
        self._reporter.step(f"{self._domain}: {message}")

    def warning(self, message: str) -> None:
        """Pass the warning on as "DOMAIN: message"."""
        self._reporter.warning(f"{self._domain}: {message}")

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Pass the progress on as that of disk "DOMAIN/DEV"."""
        self._reporter.progress(f"{self._domain}/{dev}", phase, done_bytes, total_bytes)


class Silent:
    """Reports nothing: for callers that only want the result."""

    def step(self, message: str) -> None:
        """Ignore the step."""

    def warning(self, message: str) -> None:
        """Ignore the warning."""

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Ignore the progress."""
