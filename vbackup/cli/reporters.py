"""Show what the work tells: bars on a terminal, log lines elsewhere, JSON lines for programs. All on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vbackup.cli.output import plain
from vbackup.report import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Without a terminal a line of progress comes this often.
LINE_INTERVAL_S = 10.0


@contextmanager
def choose(progress: str, *, quiet: bool) -> Iterator[Reporter]:
    """The reporter for ``--progress`` and ``--quiet``; when the block is left its bars stand still."""
    if progress == "json":
        yield JsonLines()
    elif progress == "none" or quiet:
        yield Warnings()
    elif sys.stderr.isatty():
        with Terminal() as terminal:
            yield terminal
    else:
        yield Lines()


class Warnings:
    """Only what the administrator must know."""

    def step(self, message: str) -> None:
        """See Reporter."""

    def warning(self, message: str) -> None:
        """See Reporter."""
        print(f"vbackup: warning: {plain(message)}", file=sys.stderr, flush=True)

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""


class Lines(Warnings):
    """Plain log lines."""

    def __init__(self) -> None:
        self._told_at: dict[str, float] = {}

    def step(self, message: str) -> None:
        """See Reporter."""
        print(f"vbackup: {plain(message)}", file=sys.stderr, flush=True)

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""
        now = time.monotonic()
        if now - self._told_at.setdefault(dev, now) >= LINE_INTERVAL_S and total_bytes:
            self._told_at[dev] = now
            self.step(f"Disk {dev}: {100 * done_bytes // total_bytes} % of {total_bytes} bytes.")


class JsonLines:
    """One event a line, as vbackup(1) lists them."""

    def step(self, message: str) -> None:
        """See Reporter."""
        self._event("step", message=message)

    def warning(self, message: str) -> None:
        """See Reporter."""
        self._event("warning", message=message)

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""
        self._event("progress", dev=dev, done_bytes=done_bytes, total_bytes=total_bytes)

    def _event(self, event: str, **members: Any) -> None:
        line = {"event": event, "time": round(time.time(), 3), **members}
        print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)


class Terminal:
    """A bar for each disk, steps above them. rich is loaded when there is something to show."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, message: str) -> None:
        """See Reporter."""
        self._bars().console.print(plain(message), style="dim", markup=False, highlight=False)
        self._next_stage()

    def warning(self, message: str) -> None:
        """See Reporter."""
        self._bars().console.print(f"warning: {plain(message)}", style="yellow", markup=False, highlight=False)

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""
        bars = self._bars()
        if dev not in self._tasks:
            self._tasks[dev] = bars.add_task(dev, total=None)
        bars.update(self._tasks[dev], completed=done_bytes, total=total_bytes)

    def _next_stage(self) -> None:
        """A step ends what its bars told of; the next progress makes new ones."""
        for dev, task in list(self._tasks.items()):
            if self._bars().tasks[self._bars().task_ids.index(task)].finished:
                del self._tasks[dev]

    def _bars(self) -> Progress:
        if self._progress is None:
            from rich import progress
            from rich.console import Console

            self._progress = progress.Progress(
                progress.TextColumn("{task.description:<6}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.DownloadColumn(binary_units=True),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                redirect_stdout=False,  # rich would print there what is meant for stdout
                redirect_stderr=False,
            )
            self._progress.start()
        return self._progress
