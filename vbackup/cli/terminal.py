"""The reporter for a terminal: a progress bar for each disk, below the steps."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vbackup.cli.output import plain, rate
from vbackup.report import Phase, Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Terminal:
    """Shows a bar for each disk, and the steps above them."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._lock = threading.Lock()
        self._tasks: dict[tuple[str, Phase], TaskID] = {}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, message: str) -> None:
        """Print the step above the bars."""
        self.print(message, style="dim")

    def warning(self, message: str) -> None:
        """Print the warning above the bars."""
        self.print(f"warning: {message}", style="yellow")

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Move the bar of this phase of the disk."""
        key = (dev, phase)
        if key not in self._tasks:
            self._tasks[key] = self.bars().add_task(_title(dev, phase), total=None)
        self.bars().update(self._tasks[key], completed=done_bytes, total=total_bytes)

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


class TerminalPart:
    """Shows one domain of several. Full bars are hidden, which leaves room for those that move."""

    def __init__(self, terminal: Terminal, domain: str) -> None:
        self._terminal = terminal
        self._domain = domain
        self._tasks: dict[tuple[str, Phase], TaskID] = {}

    def step(self, message: str) -> None:
        """Print the step, with the domain in front, above the bars."""
        self._terminal.print(f"{self._domain}: {message}", style="dim")

    def warning(self, message: str) -> None:
        """Print the warning, with the domain in front, above the bars."""
        self._terminal.print(f"warning: {self._domain}: {message}", style="yellow")

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """Move the bar of this phase of the disk, and hide it when it is full."""
        bars, key = self._terminal.bars(), (dev, phase)
        if key not in self._tasks:
            self._tasks[key] = bars.add_task(_title(f"{self._domain}/{dev}", phase), total=None)
        is_full = 0 < total_bytes <= done_bytes
        bars.update(self._tasks[key], completed=done_bytes, total=total_bytes, visible=not is_full)


def _title(disk: str, phase: Phase) -> str:
    return plain(f"{disk} {phase.value}")


def _new_bars() -> Progress:
    # Imported when there is something to show: rich takes longer to import than a repository to be listed.
    from rich import console, progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        """The speed in the units of --speed; rich's own column counts in powers of ten."""

        def render(self, task: progress.Task) -> Text:
            speed_bytes_s = task.finished_speed or task.speed
            return Text("" if speed_bytes_s is None else rate(speed_bytes_s))

    return progress.Progress(
        progress.TextColumn("{task.description:<9}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        Rate(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        expand=True,
        redirect_stdout=False,  # rich would send it to stderr, with the bars
        redirect_stderr=False,
    )
