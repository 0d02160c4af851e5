"""The grammar of the command line: wrong usage is one sentence and status 2, help and version are no errors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vbackup
from vbackup.cli import parser

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
        ("ls",),
        ("ls", "web", "etc"),
        ("ls", "web", "--no-such-option", "/etc"),
        ("cp", "web", "/etc"),
        ("cat", "web"),
        ("search", "*.conf"),
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
    assert re.search(r"\. See 'vbackup[a-z ]* --help'\.\n$", outcome.stderr)
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("--help",), ("backup", "--help"), ("restore", "-h")], ids=" ".join)
def test_help_is_no_error(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).stdout.startswith("usage: vbackup")


def test_version_is_told(command: Command) -> None:
    assert command("--version").stdout == f"vbackup {vbackup.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lst",), "No command 'lst'; the closest is 'list'. See 'vbackup --help'."),
        (("qqq",), "No command 'qqq'; the commands are: run, config,"),
        (("bitmap", "ad", "web", "b"), "No command 'ad'; the closest is 'add'. See 'vbackup bitmap --help'."),
        (("backup", "web", "--exlude", "a"), "Unrecognized arguments: --exlude a; the closest is '--exclude'."),
        (("backup", "web", "--level", "ful"), "; the closest is 'full'. See 'vbackup backup --help'."),
        (("list", "web", "-q", "two"), "the words that belong to no option stand together, as in the usage"),
        (("list", "wbe"), "; the closest is 'web'"),
        (
            ("show", "web", "--backup", "a", "--domain", "db"),
            "Two domains given: web and db. See 'vbackup show --help'",
        ),
        (("bitmap", "list"), "See 'vbackup bitmap list --help'."),
        (("bitmap", "add", "web"), "No domain given: the only word, 'web', is the name of the bitmap. Give the domain"),
        (("backup", "--disk", "vda", "web"), "--disk takes all words that follow it, so vda, web are taken as disks."),
        (("backup", "--exclude-disk", "vda", "web"), "Give the domain before --exclude-disk, or write '--' after the"),
        (("speed", "--disk", "vda", "web", "9M"), "No rate given: --disk takes all words that follow it, so vda"),
        (("bitmap", "list", "--disk", "vda", "web"), "No domain given: --disk takes all words"),
        (("bitmap", "add", "--disk", "vda", "web", "b"), "required: NAME: --disk takes all words that follow it, so"),
        (("backup", "--disk", "vda,vdb"), "No domain given. See"),
        (("backup", "--disk", "vda"), "No domain given. See"),
    ],
    ids=str,
)
def test_what_was_meant_and_whose_help_has_it_are_told(
    command: Command, monkeypatch: pytest.MonkeyPatch, filled: Path, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("VBACKUP_REPOSITORY", os.fspath(filled))
    assert said in command(*arguments, status=None).stderr


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("show", " DOMAIN [ID]"),
        ("restore", " DOMAIN [ID]"),
        ("forget", " DOMAIN\n"),
        ("speed", " DOMAIN RATE\n"),
        ("list", " [DOMAIN]\n"),
        ("recover", " [DOMAIN]\n"),
    ],
)
def test_usage_shows_what_is_required(command: Command, name: str, usage: str) -> None:
    help_text = command(name, "--help").stdout.partition("\n\n")[0] + "\n"
    assert usage in help_text


#: The commands that have commands, and one of these.
INNER = {
    **{name: ["list"] for name in ("bitmap", "session", "tracker", "checkpoint")},
    "stream": ["backup"],
    "engine": ["read"],
}


@pytest.mark.parametrize("name", parser.COMMANDS)
def test_connection_is_offered_by_the_commands_that_use_it(command: Command, name: str) -> None:
    offered = "--connect" in command(name, *INNER.get(name, ()), "--help").stdout
    without = ("init", "list", "usage", "fetch", "hooks", "umount", "schema", "schedule", "notify")
    assert offered == (name not in without)


@pytest.mark.parametrize(
    "arguments",
    [
        ("cp", "web", "/a", "-", "--backup", "x"),
        ("cp", "web", "--backup", "x", "/a", "-"),
        ("cp", "--backup", "x", "web", "--archive", "/a", "-q", "-"),
    ],
)
def test_options_can_stand_between_the_words_of_a_command_with_paths(arguments: tuple[str, ...]) -> None:
    options = parser.parse(arguments)
    assert (options.words, options.backup) == (["web", "/a", "-"], "x")
