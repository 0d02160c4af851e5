"""What the work tells comes as bars, lines or JSON, always on stderr, with escape codes on terminals only."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import pytest

from vbackup.cli import output, reporters
from vbackup.cli.reporters import JsonLines, Lines, Terminal, Warnings
from vbackup.report import Reporter, Silent


def tell(reporter: Reporter) -> None:
    """One of everything, over two disks and two stages."""
    reporter.step("Disk vda: full, asked for.")
    reporter.warning("The disk [bold]vdb[/bold] is käse.")
    for done in (0, 512, 1024):
        reporter.progress("vda", done, 1024)
        reporter.progress("vdb", done, 2048)
    reporter.step("Disk vda: 1 image checked.")
    reporter.progress("vda", 7, 7)


# which one


@pytest.mark.parametrize(
    ("progress", "quiet", "kind"),
    [
        ("auto", False, Lines),
        ("auto", True, Warnings),
        ("none", False, Warnings),
        ("none", True, Warnings),
        ("json", False, JsonLines),
        ("json", True, JsonLines),
    ],
)
def test_reporter_is_chosen_by_the_options(progress: str, quiet: bool, kind: type[object]) -> None:
    with reporters.choose(progress, quiet=quiet) as reporter:
        assert type(reporter) is kind


def test_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reporters.choose("auto", quiet=False) as reporter:
        assert isinstance(reporter, Terminal)


# without a terminal


@pytest.mark.parametrize("make", [Warnings, Lines, JsonLines], ids=lambda make: make.__name__)
def test_no_escape_codes_without_a_terminal(make: Callable[[], Reporter], capsys: pytest.CaptureFixture[str]) -> None:
    tell(make())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\x1b" not in captured.err


def test_warnings_are_all_that_is_told_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Warnings())
    assert capsys.readouterr().err == "vbackup: warning: The disk [bold]vdb[/bold] is käse.\n"


def test_lines_tell_steps_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Lines())
    assert capsys.readouterr().err.splitlines() == [
        "vbackup: Disk vda: full, asked for.",
        "vbackup: warning: The disk [bold]vdb[/bold] is käse.",
        "vbackup: Disk vda: 1 image checked.",
    ]


def test_lines_tell_progress_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    lines = Lines()
    for done in range(6):
        lines.progress("vda", done * 100, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "vbackup: Disk vda: 20% of 1000 bytes.",
        "vbackup: Disk vda: 40% of 1000 bytes.",
    ]


def test_lines_of_an_empty_disk_divide_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    lines = Lines()
    for _ in range(3):
        lines.progress("vda", 0, 0)


def test_nobody_is_told_anything(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Silent())
    assert capsys.readouterr() == ("", "")


# JSON lines


def test_each_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    tell(JsonLines())
    events: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["step", "warning", *["progress"] * 6, "step", "progress"]
    assert all(event["time"] > 1_700_000_000 for event in events)
    assert events[1]["message"] == "The disk [bold]vdb[/bold] is käse."
    assert {key: events[4][key] for key in ("dev", "done_bytes", "total_bytes")} == {
        "dev": "vda",
        "done_bytes": 512,
        "total_bytes": 1024,
    }


@pytest.mark.parametrize("text", ["a\nb", 'quo"te', "\x1b[31m", "\u2028", "日本"])
def test_any_message_stays_on_its_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().warning(text)
    lines = capsys.readouterr().err.split("\n")
    assert lines[1:] == [""]
    assert json.loads(lines[0])["message"] == text


# a terminal


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
            terminal.progress("vda", 1, 2)
            raise ValueError("inside")

    with a_terminal() as shown, pytest.raises(ValueError, match="inside"):
        work()
    assert shown[0].rstrip("\r\n").endswith(SHOW_CURSOR)


def test_terminal_that_is_told_nothing_shows_nothing() -> None:
    with a_terminal() as shown, Terminal():
        pass
    assert shown == [""]


def test_next_stage_has_bars_of_its_own() -> None:
    """The digest of a disk is not the copying of it."""
    with a_terminal() as shown, Terminal() as terminal:
        terminal.progress("vda", 10, 10)
        terminal.step("Copied.")
        terminal.progress("vda", 1, 20)
    last = shown[0][shown[0].rindex("Copied.") :]
    assert "100%" in last
    assert "  5%" in last


# several domains


@pytest.mark.parametrize("make", [Warnings, Lines])
def test_line_names_the_domain(make: type[Warnings], capsys: pytest.CaptureFixture[str]) -> None:
    part = make().labelled("[x]\n")
    part.step("Copied.")
    part.warning("It is käse.")
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == r"vbackup: warning: [x]\n: It is käse."
    assert told[:-1] == ([] if make is Warnings else [r"vbackup: [x]\n: Copied."])


def test_event_has_the_domain_as_a_member(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonLines()
    part = reporter.labelled("[x]\n")
    part.step("Copied.")
    part.progress("vda", 1, 2)
    reporter.step("All.")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event.get("domain") for event in events] == ["[x]\n", "[x]\n", None]
    assert (events[0]["message"], events[1]["dev"]) == ("Copied.", "vda")


def test_terminal_has_a_bar_a_disk_that_goes_when_it_is_full() -> None:
    with a_terminal() as shown, Terminal() as terminal:
        one, two = terminal.labelled("[x]"), terminal.labelled("käse")
        one.progress("vda", 1, 2)
        two.progress("vda", 1, 4)
        one.progress("vda", 2, 2)
        two.step("Copied.")  # ends no bar of the other domain
        two.progress("vda", 2, 4)
        two.warning("It is late.")
        tasks = {task.description: task.visible for task in terminal.bars().tasks}
    assert tasks == {"[x]/vda": False, "käse/vda": True}
    for part in ("käse/vda", "käse: Copied.", "warning: käse: It is late."):
        assert part in shown[0]


def test_lines_of_many_threads_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines()

    def tell_many(name: str) -> None:
        part = lines.labelled(name)
        for _ in range(200):
            part.step("x" * 100)

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(tell_many, "abcdefgh"))
    told = capfd.readouterr().err.splitlines()
    assert sorted(told) == sorted(f"vbackup: {name}: {'x' * 100}" for name in "abcdefgh" for _ in range(200))


# results


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (1024**4, "1.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_size_is_for_people(size_bytes: int, text: str) -> None:
    assert output.size(size_bytes) == text


def test_table_has_no_escape_codes_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "checkpoint 20261123T101500Z-full is inconsistent (QEMU did not close the image) " * 2
    output.table(("DISK", "SIZE", "WHY"), [("vda", "1 B", reason), ("[red]vdb", "100 B", "[/]")])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert reason.strip() in text
    assert "[red]vdb" in text
    assert "[/]" in text


@contextmanager
def stdout_on_a_terminal(monkeypatch: pytest.MonkeyPatch, *, columns: int) -> Iterator[list[str]]:
    """What is printed in the block goes to a terminal; its lines are in the list afterwards."""
    controller, terminal = pty.openpty()
    monkeypatch.setenv("COLUMNS", str(columns))
    lines: list[str] = []
    with os.fdopen(terminal, "w") as stream, redirect_stdout(stream):
        yield lines
    pieces = []
    # The terminal is closed by now; what it was given comes in pieces.
    with suppress(OSError):
        while piece := os.read(controller, 65536):
            pieces.append(piece)
    os.close(controller)
    lines += b"".join(pieces).decode().split("\r\n")


def test_last_column_is_folded_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with stdout_on_a_terminal(monkeypatch, columns=40) as lines:
        output.table(("DISK", "SIZE", "WHY"), [("vda", "1 B", "word " * 12), ("vdb", "100 B", "short")])
    assert lines[0] == "\x1b[1mDISK   SIZE  WHY\x1b[0m"
    assert lines[1:] == [
        "vda     1 B  word word word word word",
        "             word word word word word",
        "             word word",
        "vdb   100 B  short",
        "",
    ]


def test_blank_text_that_is_too_long_is_an_empty_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    with stdout_on_a_terminal(monkeypatch, columns=40) as lines:
        output.table(("DISK", "WHY"), [("vda", " " * 100)])
    assert lines[1:] == ["vda", ""]


def test_terminal_that_is_too_narrow_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with stdout_on_a_terminal(monkeypatch, columns=5) as lines:
        output.table(("ID", "WHY"), [("20261123T101500Z-incremental", "as it was asked for by the user")])
    assert "".join(lines[1:]).replace(" ", "") == "20261123T101500Z-incrementalasitwasaskedforbytheuser"


def test_columns_stay_in_line_beside_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "WHY"), [("\u5099\u4efd", "x"), ("e\u0301te", "y"), ("web", "z")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME  WHY", "\u5099\u4efd  x", "e\u0301te   y", "web   z"]


def test_tree_draws_branches_and_a_chain_of_any_length(capsys: pytest.CaptureFixture[str]) -> None:
    output.tree([("a", None, "A"), ("b", "a", "B"), ("c", "b", "C"), ("d", "a", "D"), ("e", "gone", "E")])
    assert capsys.readouterr().out.splitlines() == ["A", "├── B", "│   └── C", "└── D", "E"]
    long = [(str(number), str(number - 1), "one") for number in range(1, 1500)]
    output.tree(long)
    assert len(capsys.readouterr().out.splitlines()) == len(long)


def test_tree_without_unicode_has_plain_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    output.tree([("a", None, "A"), ("b", "a", "B"), ("c", "a", "C")])
    assert raw.getvalue().decode().splitlines() == ["A", "+-- B", "`-- C"]
