"""A terminal gets bars with the steps above them, and is left as it was."""

from __future__ import annotations

import itertools
import os
import pty
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress

import pytest

from tests.unit.builders import tell
from vbackup.cli.reporters import Terminal
from vbackup.report import Phase

SHOW_CURSOR = "\x1b[?25h"
COLOURS = ("\x1b[3", "\x1b[9")


@contextmanager
def a_terminal() -> Iterator[list[str]]:
    """Make stderr a terminal; afterwards the list has what came there."""
    controller, tty = pty.openpty()
    shown: list[str] = []
    with os.fdopen(tty, "w") as stream, redirect_stderr(stream):
        yield shown
        stream.flush()
        os.set_blocking(controller, False)
        pieces = []
        with suppress(BlockingIOError):
            while piece := os.read(controller, 65536):
                pieces.append(piece)
        shown.append(b"".join(pieces).decode())
    os.close(controller)


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def test_terminal_shows_bars_steps_and_warnings() -> None:
    with a_terminal() as shown, Terminal() as terminal:
        tell(terminal)
    for part in ("vda", "vdb", "100%", "Disk vda: full, asked for.", "The disk [bold]vdb[/bold] is käse."):
        assert part in shown[0]
    assert any(colour in shown[0] for colour in COLOURS)


def test_terminal_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with a_terminal() as shown, Terminal() as terminal:
        tell(terminal)
    assert "käse" in shown[0]
    assert not any(colour in shown[0] for colour in COLOURS)


def test_terminal_is_left_as_it_was() -> None:
    def work() -> None:
        with Terminal() as terminal:
            terminal.progress("vda", Phase.COPY, 1, 2)
            raise ValueError("inside")

    with a_terminal() as shown, pytest.raises(ValueError, match="inside"):
        work()
    assert shown[0].rstrip("\r\n").endswith(SHOW_CURSOR)


def test_terminal_that_is_told_nothing_shows_nothing() -> None:
    with a_terminal() as shown, Terminal():
        pass
    assert shown == [""]


def test_each_phase_has_a_bar_that_names_it() -> None:
    with a_terminal() as shown, Terminal() as terminal:
        terminal.progress("vda", Phase.COPY, 10, 10)
        terminal.step("Copied.")
        terminal.progress("vda", Phase.CHECK, 1, 20)
    last = shown[0][shown[0].rindex("Copied.") :]
    bars = [line for line in last.splitlines() if "vda" in line][-2:]
    assert ["vda copy" in bars[0], "100%" in bars[0], "vda check" in bars[1], "  5%" in bars[1]] == [True] * 4


def test_rates_are_in_the_units_of_speed_and_a_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    now_s = itertools.count()
    with a_terminal() as shown, Terminal() as terminal:
        monkeypatch.setattr(terminal.bars(), "get_time", lambda: float(next(now_s)))
        for done in range(5):
            terminal.progress("vda", Phase.COPY, done << 33, 40 << 33)
        terminal.bars().refresh()
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", shown[0]) if "vda copy" in line]
    assert any(re.search(r"\d GiB/s", line) for line in lines)
    assert max(map(len, lines)) <= 80


def test_terminal_has_a_bar_a_disk_that_goes_when_it_is_full() -> None:
    with a_terminal() as shown, Terminal() as terminal:
        one, two = terminal.labelled("[x]"), terminal.labelled("käse")
        one.progress("vda", Phase.COPY, 1, 2)
        two.progress("vda", Phase.COPY, 1, 4)
        one.progress("vda", Phase.COPY, 2, 2)
        two.step("Copied.")  # ends no bar of the other domain
        two.progress("vda", Phase.COPY, 2, 4)
        two.warning("It is late.")
        tasks = {task.description: task.visible for task in terminal.bars().tasks}
    assert tasks == {"[x]/vda copy": False, "käse/vda copy": True}
    for part in ("käse/vda", "käse: Copied.", "warning: käse: It is late."):
        assert part in shown[0]
