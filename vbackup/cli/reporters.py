"""Reporters of the command line: bars on a terminal, log lines elsewhere, JSON lines for programs. All on stderr.

What goes to systemd's journal has priorities (vbackup.cli.journal).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vbackup.cli import journal
from vbackup.cli.output import plain, size
from vbackup.cli.terminal import Terminal
from vbackup.report import Labelled, Labelling, Phase, Reporter

#: Seconds between two progress lines of a disk.
LINE_INTERVAL_S = 10.0


@contextmanager
def choose(progress: str, *, quiet: bool, domain: str | None = None, is_log: bool = True) -> Iterator[Labelling]:
    """Yield the reporter for ``--progress`` and ``--quiet``; its bars stop at the end of the block.

    ``domain`` is the only domain that the command works on, for log lines; ``is_log``: without a terminal, there are
    log lines.
    """
    if progress == "json":
        yield JsonLines()
    elif progress == "none" or quiet:
        yield Warnings()
    elif not is_log:
        yield Messages()
    elif sys.stderr.isatty():
        with Terminal() as terminal:
            yield terminal
    elif journal.is_there():
        yield Journal(domain)
    else:
        yield Lines(domain)


class Warnings:
    """Prints warnings only."""

    def step(self, message: str) -> None:
        """Ignore the step."""

    def warning(self, message: str) -> None:
        """Print a line."""
        if not journal.log(journal.WARNING, plain(message)):
            _print_line(f"vbackup: warning: {plain(message)}")

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Ignore the progress."""

    def labelled(self, domain: str) -> Reporter:
        """Return a reporter whose lines begin with the domain."""
        return Labelled(self, domain)


class Messages(Warnings):
    """Prints steps as it does warnings: for a user who waits for an answer, not for a log."""

    def step(self, message: str) -> None:
        """Print a line."""
        _print_line(f"vbackup: {plain(message)}")


class Lines(Warnings):
    """Prints log lines with the local time and the domain."""

    def __init__(self, domain: str | None = None) -> None:
        self._domain = domain
        self._printed_at_s: dict[tuple[str, Phase], float] = {}

    def step(self, message: str) -> None:
        """Print a line."""
        self._log(message)

    def warning(self, message: str) -> None:
        """Print a line."""
        self._log(message, "warning: ")

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Print a line every 10 seconds."""
        now_s = time.monotonic()
        if now_s - self._printed_at_s.setdefault((dev, phase), now_s) >= LINE_INTERVAL_S and total_bytes:
            self._printed_at_s[dev, phase] = now_s
            # Labelled puts a domain of several in front of the disk.
            domain, slash, name = dev.rpartition("/")
            share = f"{phase.value} {100 * done_bytes // total_bytes}% of {size(total_bytes)}"
            self._log(f"{domain}: Disk {name}: {share}." if slash else f"Disk {name}: {share}.")

    def _log(self, message: str, kind: str = "") -> None:
        domain = f"{self._domain}: " if self._domain is not None else ""
        _print_line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} vbackup: {kind}{plain(domain + message)}")


class Journal(Lines):
    """Sends messages to systemd's journal, which has the time itself, with their priorities and what they are of."""

    def __init__(self, domain: str | None = None) -> None:
        super().__init__(domain)
        self._job: str | None = None

    def labelled(self, domain: str) -> Reporter:
        """Return a reporter whose messages have the domain as a field, and the job of this one."""
        made = Journal(domain)
        made._job = self._job
        return made

    def _log(self, message: str, kind: str = "") -> None:
        self._job = journal.job_in(message) or self._job  # a run does one after the other
        domain = f"{self._domain}: " if self._domain is not None else ""
        priority = journal.WARNING if kind else journal.INFO
        journal.log(priority, plain(domain + message), domain=self._domain, job=self._job)


class JsonLines:
    """Prints one JSON object per event, as vbackup-json(7) describes them; ``members`` are in each."""

    def __init__(self, **members: Any) -> None:
        self._members = members

    def labelled(self, domain: str) -> Reporter:
        """Return a reporter whose events have the member ``domain``."""
        return JsonLines(domain=domain)

    def step(self, message: str) -> None:
        """Print a ``step`` event."""
        self._event("step", message=message)

    def warning(self, message: str) -> None:
        """Print a ``warning`` event."""
        self._event("warning", message=message)

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Print a ``progress`` event."""
        self._event("progress", dev=dev, phase=phase.value, done_bytes=done_bytes, total_bytes=total_bytes)

    def _event(self, event: str, **members: Any) -> None:
        line = {"schema": "vbackup.event/1", "event": event, "time": round(time.time(), 3), **self._members, **members}
        _print_line(json.dumps(line, ensure_ascii=False))


def _print_line(line: str) -> None:
    # In one write, so that lines of several threads stay whole.
    print(f"{line}\n", end="", file=sys.stderr, flush=True)
