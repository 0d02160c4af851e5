"""The grammar of the command line: wrong usage is one sentence and status 2, help and version are no errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vbackup

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-command",),
        ("backup", "web", "--level", "half"),
        ("backup", "web", "--level", "FULL"),
        ("backup", "web", "--no-such-option"),
        ("backup", "web", "--lev", "full"),
        ("backup", "web", "--quiesce", "maybe"),
        ("backup", "web", "--compress", "lzma"),
        ("backup", "web", "--speed", "fast"),
        ("backup", "web", "--speed", "-1"),
        ("backup", "web", "--speed", "0"),
        ("backup", "web", "--max-latency", "0"),
        ("backup", "web", "--max-latency", "5 minutes"),
        ("speed",),
        ("speed", "web"),
        ("speed", "--domain", "web"),
        ("speed", "web", "fast"),
        ("speed", "web", "0"),
        ("backup", "web", "--freeze-limit", "0"),
        ("backup", "web", "--freeze-limit", "601"),
        ("backup", "web", "--progress", "loud"),
        ("backup", "web", "-q", "-v"),
        ("backup", "web", "--domain", "two"),
        ("backup", "web", "--all"),
        ("backup", "web", "--exclude", "two"),
        ("backup", "web", "two", ""),
        ("backup", "web", "two", "--parallel", "0"),
        ("backup", "web", "two", "--group", "--parallel", "2"),
        ("backup", "web", "--total-speed", "0"),
        ("backup", ""),
        ("backup",),
        ("restore", "web"),
        ("restore", "--output", "x"),
        ("restore", "web", "--output", "x", "--format", "vmdk"),
        ("restore", "web", "--output", "x", "--at", "yesterday"),
        ("restore", "web", "--output", "x", "--at", "2026-11-23", "--backup", "x"),
        ("show",),
        ("show", "web", "--backup"),
        ("list", "web", "two"),
        ("list", "-r"),
        ("init", "directory"),
        ("recover",),
        ("recover", "web", "--all"),
        ("recover", "web", "two"),
        ("transaction", "web", "/nonexistent"),
        ("transaction", "web", "x", "--completion-mode", "both"),
        ("bitmap",),
        ("bitmap", "list"),
        ("bitmap", "add", "web"),
        ("bitmap", "add", "web", "b", "--granularity", "3k"),
        ("bitmap", "merge", "web", "b"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_two_and_one_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, filled: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VBACKUP_REPOSITORY", os.fspath(filled))
    outcome = command(*arguments, status=2)
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("vbackup: ")
    assert outcome.stderr.endswith(". See 'vbackup --help'.\n")
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("--help",), ("backup", "--help"), ("restore", "-h")], ids=" ".join)
def test_help_is_no_error(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).stdout.startswith("usage: vbackup")


def test_version_is_told(command: Command) -> None:
    assert command("--version").stdout == f"vbackup {vbackup.__version__}\n"
