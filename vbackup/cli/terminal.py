"""The reporter for a terminal: a progress bar for each disk, below the steps."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vbackup.cli.output import plain
from vbackup.report import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Terminal:
    """Shows a bar for each disk, and the steps above them."""

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
        """Print the step above the bars."""
        self.print(message, style="dim")
        # What comes after a step is other work on the disk: it gets a new bar instead of resetting a full one.
        self._tasks = {dev: task for dev, task in self._tasks.items() if not self._is_finished(task)}

    def warning(self, message: str) -> None:
        """Print the warning above the bars."""
        self.print(f"warning: {message}", style="yellow")

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """Move the disk's bar."""
        if dev not in self._tasks:
            self._tasks[dev] = self.bars().add_task(plain(dev), total=None)
        self.bars().update(self._tasks[dev], completed=done_bytes, total=total_bytes)

    def labelled(self, domain: str) -> Reporter:
        """Return a reporter for one domain on this terminal."""
        return TerminalPart(self, domain)

    def print(self, message: str, *, style: str) -> None:
        """Print a line above the bars."""
        self.bars().console.print(plain(message), style=style, markup=False, highlight=False)

    def bars(self) -> Progress:
        """Return the bars, shown from now on; any thread may call their methods."""
        with self._lock:
            if self._progress is None:
                self._progress = _new_bars()
                self._progress.start()
            return self._progress

    def _is_finished(self, task: TaskID) -> bool:
        return any(shown.finished for shown in self.bars().tasks if shown.id == task)


class TerminalPart:
    """Shows one domain of several. Full bars are hidden, which leaves room for those that move."""

    def __init__(self, terminal: Terminal, domain: str) -> None:
        self._terminal = terminal
        self._domain = domain
        self._tasks: dict[str, TaskID] = {}

    def step(self, message: str) -> None:
        """Print the step, with the domain in front, above the bars."""
        self._terminal.print(f"{self._domain}: {message}", style="dim")

    def warning(self, message: str) -> None:
        """Print the warning, with the domain in front, above the bars."""
        self._terminal.print(f"warning: {self._domain}: {message}", style="yellow")

    def progress(self, dev: str, done_bytes: int, total_bytes: int) -> None:
        """Move the disk's bar, and hide it when it is full."""
        bars = self._terminal.bars()
        if dev not in self._tasks:
            self._tasks[dev] = bars.add_task(plain(f"{self._domain}/{dev}"), total=None)
        is_full = 0 < total_bytes <= done_bytes
        bars.update(self._tasks[dev], completed=done_bytes, total=total_bytes, visible=not is_full)


def _new_bars() -> Progress:
    # Imported when there is something to show: rich takes longer to import than a repository to be listed.
    from rich import console, progress

    return progress.Progress(
        progress.TextColumn("{task.description:<6}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        redirect_stdout=False,  # rich would send it to stderr, with the bars
        redirect_stderr=False,
    )
