"""Steps, warnings and progress are printed as lines or JSON, always on stderr and without escape codes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from tests.unit.builders import tell
from vbackup.cli import reporters
from vbackup.cli.reporters import JsonLines, Lines, Messages, Terminal, Warnings
from vbackup.report import Phase, Reporter

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


def test_command_without_a_log_has_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reporters.choose("auto", quiet=False, is_log=False) as reporter:
        tell(reporter)
    assert capsys.readouterr().err.splitlines() == [
        "vbackup: Disk vda: full, asked for.",
        "vbackup: warning: The disk [bold]vdb[/bold] is käse.",
        "vbackup: Disk vda: 1 image checked.",
    ]
    with reporters.choose("auto", quiet=True, is_log=False) as reporter:
        assert type(reporter) is Warnings


def test_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reporters.choose("auto", quiet=False) as reporter:
        assert isinstance(reporter, Terminal)


# without a terminal


@pytest.mark.parametrize("make", [Warnings, Messages, Lines, JsonLines], ids=lambda make: make.__name__)
def test_no_escape_codes_without_a_terminal(make: Callable[[], Reporter], capsys: pytest.CaptureFixture[str]) -> None:
    tell(make())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\x1b" not in captured.err


def test_warnings_are_all_that_is_told_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Warnings())
    assert capsys.readouterr().err == "vbackup: warning: The disk [bold]vdb[/bold] is käse.\n"


def log_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that were logged, without their times."""
    lines = capsys.readouterr().err.splitlines()
    times = [re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines]
    assert all(times)
    return [line[20:] for line in lines]


def test_lines_tell_steps_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Lines())
    assert log_lines(capsys) == [
        "vbackup: Disk vda: full, asked for.",
        "vbackup: warning: The disk [bold]vdb[/bold] is käse.",
        "vbackup: Disk vda: 1 image checked.",
    ]


def test_lines_have_the_time_and_the_only_domain(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now().astimezone().replace(microsecond=0)
    with reporters.choose("auto", quiet=False, domain="web\n") as reporter:
        reporter.step("Copied.")
    [line] = capsys.readouterr().err.splitlines()
    assert before <= datetime.fromisoformat(line[:19]).astimezone() <= datetime.now().astimezone()
    assert line[19:] == r" vbackup: web\n: Copied."


def test_lines_tell_progress_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    lines = Lines()
    for done in range(6):
        lines.progress("vda", Phase.COPY, done << 30, 10 << 30)
    assert log_lines(capsys) == [
        "vbackup: Disk vda: copy 20% of 10.0 GiB.",
        "vbackup: Disk vda: copy 40% of 10.0 GiB.",
    ]


def test_progress_of_several_domains_names_the_domain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    part = Lines().labelled("a/b")
    for done in range(2):
        part.progress("vda", Phase.CHECK, done, 2)
    assert log_lines(capsys) == ["vbackup: a/b: Disk vda: check 50% of 2 B."]


def test_lines_of_an_empty_disk_divide_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    lines = Lines()
    for _ in range(3):
        lines.progress("vda", Phase.COPY, 0, 0)


# JSON lines


def test_each_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    tell(JsonLines())
    events: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["step", "warning", *["progress"] * 6, "step", "progress"]
    assert all(event["time"] > 1_700_000_000 for event in events)
    assert events[1]["message"] == "The disk [bold]vdb[/bold] is käse."
    assert {key: events[4][key] for key in ("dev", "phase", "done_bytes", "total_bytes")} == {
        "dev": "vda",
        "phase": "copy",
        "done_bytes": 512,
        "total_bytes": 1024,
    }


@pytest.mark.parametrize("text", ["a\nb", 'quo"te', "\x1b[31m", "\u2028", "日本"])
def test_any_message_stays_on_its_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().warning(text)
    lines = capsys.readouterr().err.split("\n")
    assert lines[1:] == [""]
    assert json.loads(lines[0])["message"] == text


# several domains


@pytest.mark.parametrize("make", [Warnings, Lines])
def test_line_names_the_domain(make: type[Warnings], capsys: pytest.CaptureFixture[str]) -> None:
    part = make().labelled("[x]\n")
    part.step("Copied.")
    part.warning("It is käse.")
    told = log_lines(capsys) if make is Lines else capsys.readouterr().err.splitlines()
    assert told[-1] == r"vbackup: warning: [x]\n: It is käse."
    assert told[:-1] == ([] if make is Warnings else [r"vbackup: [x]\n: Copied."])


def test_event_has_the_domain_as_a_member(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonLines()
    part = reporter.labelled("[x]\n")
    part.step("Copied.")
    part.progress("vda", Phase.COPY, 1, 2)
    reporter.step("All.")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event.get("domain") for event in events] == ["[x]\n", "[x]\n", None]
    assert (events[0]["message"], events[1]["dev"]) == ("Copied.", "vda")


def test_lines_of_many_threads_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines()

    def tell_many(name: str) -> None:
        part = lines.labelled(name)
        for _ in range(200):
            part.step("x" * 100)

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(tell_many, "abcdefgh"))
    told = log_lines(capfd)
    assert sorted(told) == sorted(f"vbackup: {name}: {'x' * 100}" for name in "abcdefgh" for _ in range(200))
