"""``vbackup backup``: its own arguments, and a libvirt that cannot be reached."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from vbackup.cli import values

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Command

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Command


def test_libvirt_out_of_reach_is_status_four(command: Command, filled: Path, tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path / 'none'}"
    outcome = command("-c", uri, "backup", "web", "-r", filled, status=4)
    assert f"Cannot reach libvirt at {uri}" in outcome.stderr


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("10", 10), ("010", 10), ("600", 600), ("10s", 10), (" 1m ", 60)]
)
def test_freeze_limit_is_whole_seconds(text: str, expected: int) -> None:
    assert values.freeze_limit_s(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "601", "-1", "+1", "1.5", "1e2", "10x", "11m", "500ms", "9" * 5000, "\u0665"], ids=ascii
)
def test_what_is_no_freeze_limit_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of seconds from 1 to 600"):
        values.freeze_limit_s(text)


def test_empty_fleecing_area_is_not_the_working_directory(command: Command, repository: Path) -> None:
    said = command("backup", "web", "-r", repository, "--fleecing", "", status=2).stderr
    assert "the path is empty" in said


@pytest.fixture
def failure_script(tmp_path: Path) -> Path:
    """A directory with an on-failure script, which says what it gets in the log."""
    script = tmp_path / "scripts.d" / "on-failure.d" / "tell"
    script.parent.mkdir(mode=0o755, parents=True)
    script.write_text('#!/bin/sh\necho "told: $VBACKUP_STATUS $VBACKUP_DOMAIN $VBACKUP_REPOSITORY"\n')
    script.chmod(0o755)
    return script.parents[1]


@pytest.mark.parametrize(
    ("words", "domain"), [(("web",), "web"), (("web*",), "web*"), (("web", "db"), ""), (("--all",), "")], ids=str
)
def test_backup_that_cannot_begin_runs_the_scripts_for_failures(
    command: Command, filled: Path, failure_script: Path, tmp_path: Path, words: tuple[str, ...], domain: str
) -> None:
    """A repository that is not mounted, or a libvirt that does not run, is what somebody has to hear of."""
    uri, scripts = f"qemu+unix:///system?socket={tmp_path / 'none'}", ("--scripts", failure_script)
    missing = command("-c", uri, "backup", *words, "-r", tmp_path / "x", *scripts, status=7).stderr
    assert missing.count("told:") == 1
    assert f"told: 7 {domain} {tmp_path / 'x'}" in missing
    unreachable = command("-c", uri, "backup", *words, "-r", filled, *scripts, status=4).stderr
    if len(words) == 1:
        assert unreachable.count("told:") == 1
        assert f"told: 4 {domain} {filled}" in unreachable


def test_usage_error_is_for_whoever_typed_it(command: Command, failure_script: Path) -> None:
    assert "told:" not in command("backup", "web", "--scripts", failure_script, status=2).stderr


def test_scripts_are_looked_for_before_libvirt_and_the_repository(command: Command, tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path / 'none'}"
    for words in (("web",), ("web", "db"), ("--all",), ("web*",)):
        said = command("-c", uri, "backup", *words, "-r", tmp_path / "x", "--scripts", tmp_path / "y", status=2)
        assert f"There is no directory {tmp_path / 'y'} with scripts" in said.stderr


def test_full_every_is_for_level_auto(command: Command, repository: Path) -> None:
    done = command("backup", "web", "--level", "full", "--full-every", "30d", "-r", repository, status=2)
    assert "--full-every is for --level auto, and --level full is given" in done.stderr
    command("backup", "web", "--full-every", "30", "-r", repository, status=2)
