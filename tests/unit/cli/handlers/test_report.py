"""``vbackup report`` prints text, or writes a page and text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import backup, commit
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def made(repository: Path) -> str:
    """The id of a backup in the repository."""
    one = backup(1)
    commit(Repository.open(repository), one)
    return one.id


def test_text_is_printed(command: Command, repository: Path, made: str) -> None:
    out = command("report", "-r", repository, "--offline").stdout
    assert "Everything is backed up: 1 domain" in out.splitlines()[0]
    assert (
        command("report", "-r", repository, "--offline", "--text", "-").stdout.splitlines()[3:] == out.splitlines()[3:]
    )


def test_page_is_printed(command: Command, repository: Path, made: str) -> None:
    out = command("report", "-r", repository, "--offline", "--html", "-").stdout
    assert out.startswith("<!DOCTYPE html>")
    assert made in out


def test_both_are_written_for_the_user_alone(command: Command, repository: Path, made: str, tmp_path: Path) -> None:
    page, text = tmp_path / "r.html", tmp_path / "r.txt"
    arguments = ("report", "-r", repository, "--offline", "--html", page, "--text", text)
    assert command(*arguments).stdout == f"Report on 1 domains written to {page} and {text}.\n"
    assert made in page.read_text()
    assert "web" in text.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    document = command(*arguments, "--json").document
    assert document["reports"] == [{"kind": "html", "path": str(page)}, {"kind": "text", "path": str(text)}]
    assert command(*arguments, "-q").stdout == ""


def test_page_can_be_written_while_text_is_printed(
    command: Command, repository: Path, made: str, tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    out = command("report", "-r", repository, "--offline", "--html", page, "--text", "-").stdout
    assert "Domains" in out
    assert made in page.read_text()


def test_repository_that_is_gone_is_in_the_report_and_no_error(command: Command, tmp_path: Path) -> None:
    assert "CRITICAL" in command("report", "-r", tmp_path / "gone", "--offline").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--html", "-", "--text", "-"), "Only one report can go to standard output"),
        (("--json",), "A report is no JSON"),
        (("--html", ""), "the path is empty"),
        (("nightly",), "give no -r, or no job"),
    ],
)
def test_what_cannot_be(command: Command, repository: Path, options: tuple[str, ...], words: str) -> None:
    assert words in command("report", "-r", repository, *options, status=2).stderr


def test_place_that_cannot_be_written_is_status_7(command: Command, repository: Path, tmp_path: Path) -> None:
    assert "Cannot write" in command("report", "-r", repository, "--html", tmp_path / "no" / "r.html", status=7).stderr
