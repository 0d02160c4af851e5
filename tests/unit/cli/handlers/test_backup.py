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
