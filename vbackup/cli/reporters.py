"""Show what the work tells: bars on a terminal, log lines elsewhere, JSON lines for programs. All on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vbackup.cli.output import plain
from vbackup.report import Labelled, Labelling, Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Without a terminal a line of progress comes this often.
LINE_INTERVAL_S = 10.0


@contextmanager
def choose(progress: str, *, quiet: bool) -> Iterator[Labelling]:
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
        _print_line(f"vbackup: warning: {plain(message)}")

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""

    def labelled(self, domain: str) -> Reporter:
        """See Labelling."""
        return Labelled(self, domain)


class Lines(Warnings):
    """Plain log lines."""

    def __init__(self) -> None:
        self._told_at: dict[str, float] = {}

    def step(self, message: str) -> None:
        """See Reporter."""
        _print_line(f"vbackup: {plain(message)}")

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""
        now = time.monotonic()
        if now - self._told_at.setdefault(dev, now) >= LINE_INTERVAL_S and total_bytes:
            self._told_at[dev] = now
            self.step(f"Disk {dev}: {100 * done_bytes // total_bytes} % of {total_bytes} bytes.")


class JsonLines:
    """One event a line, as vbackup(1) lists them; ``members`` are in every one."""

    def __init__(self, **members: Any) -> None:
        self._members = members

    def labelled(self, domain: str) -> Reporter:
        """See Labelling."""
        return JsonLines(domain=domain)

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
        line = {"event": event, "time": round(time.time(), 3), **self._members, **members}
        _print_line(json.dumps(line, ensure_ascii=False))


def _print_line(line: str) -> None:
    """In one piece: several threads print."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


class Terminal:
    """A bar for each disk, steps above them. rich is loaded when there is something to show."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, message: str) -> None:
        """See Reporter."""
        self.print(message, style="dim")
        # A step ends what its bars told of; the next progress makes new ones.
        self._tasks = {dev: task for dev, task in self._tasks.items() if not self._is_finished(task)}

    def warning(self, message: str) -> None:
        """See Reporter."""
        self.print(f"warning: {message}", style="yellow")

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""
        if dev not in self._tasks:
            self._tasks[dev] = self.bars().add_task(plain(dev), total=None)
        self.bars().update(self._tasks[dev], completed=done_bytes, total=total_bytes)

    def labelled(self, domain: str) -> Reporter:
        """See Labelling."""
        return TerminalPart(self, domain)

    def print(self, message: str, *, style: str) -> None:
        """A line above the bars."""
        self.bars().console.print(plain(message), style=style, markup=False, highlight=False)

    def bars(self) -> Progress:
        """What is on the screen; its methods may be called by any thread."""
        with self._lock:
            if self._progress is None:
                self._progress = _new_bars()
                self._progress.start()
            return self._progress

    def _is_finished(self, task: TaskID) -> bool:
        return any(one.finished for one in self.bars().tasks if one.id == task)


class TerminalPart:
    """One domain of several: its bars go when they are full, so that those that move are seen."""

    def __init__(self, terminal: Terminal, domain: str) -> None:
        self._terminal = terminal
        self._domain = domain
        self._tasks: dict[str, TaskID] = {}

    def step(self, message: str) -> None:
        """See Reporter."""
        self._terminal.print(f"{self._domain}: {message}", style="dim")

    def warning(self, message: str) -> None:
        """See Reporter."""
        self._terminal.print(f"warning: {self._domain}: {message}", style="yellow")

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """See Reporter."""
        bars = self._terminal.bars()
        if dev not in self._tasks:
            self._tasks[dev] = bars.add_task(plain(f"{self._domain}/{dev}"), total=None)
        is_full = 0 < total_bytes <= done_bytes
        bars.update(self._tasks[dev], completed=done_bytes, total=total_bytes, visible=not is_full)


def _new_bars() -> Progress:
    from rich import console, progress

    return progress.Progress(
        progress.TextColumn("{task.description:<6}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        redirect_stdout=False,  # rich would print there what is meant for stdout
        redirect_stderr=False,
    )
