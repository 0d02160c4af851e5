"""``vbackup mount``: which word is what, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import backup_id
from vbackup.cli import background
from vbackup.cli.arguments import directory_words_of
from vbackup.cli.parser import parse

if TYPE_CHECKING:
    from tests.conftest import Command

ID = backup_id(1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("web", "m"), ("web", None, Path("m"))),
        (("web", ID, "m"), ("web", ID, Path("m"))),
        (("web", "m", "--backup", ID), ("web", ID, Path("m"))),
        (("web", ID, "m", "--backup", ID), ("web", ID, Path("m"))),
        (("--domain=-web", "m"), ("-web", None, Path("m"))),
        (("--domain=-web", ID, "m"), ("-web", ID, Path("m"))),
        (("--domain", "web", "web", "m"), ("web", None, Path("m"))),
        (("--domain", "web", "web", ID, "m"), ("web", ID, Path("m"))),
    ],
)
def test_words(words: tuple[str, ...], expected: tuple[str, str | None, Path]) -> None:
    assert directory_words_of(parse(["mount", *words])) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "No directory given"),
        (("web",), "the only word, 'web', is the directory"),
        (("web", ID, "x", "m"), "Too many words: x"),
        (("web", ID, "m", "--backup", backup_id(2)), "Two backups given"),
        (("web", ID, "m", "--domain", "other"), "Two domains given"),
        (("", "m"), "The domain name is empty"),
        (("web", ""), "The path of the directory is empty"),
        (("--disk", "vda", "web", "m"), "--disk takes all words that follow it"),
    ],
)
def test_words_that_cannot_be(command: Command, filled: Path, words: tuple[str, ...], message: str) -> None:
    assert message in command("mount", *words, "-r", filled, status=2).stderr


def test_repository_is_asked_for_before_there_is_a_child(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "start", lambda _stop: pytest.fail("a child was forked"))
    assert "No repository given" in command("mount", "web", "m", status=2).stderr


def test_nothing_is_made_for_a_backup_that_is_not_there(command: Command, filled: Path, tmp_path: Path) -> None:
    command("mount", "web", "20010101T000000Z-full", tmp_path / "m", "--foreground", "-r", filled, status=6)
    command("mount", "nix", tmp_path / "m", "--foreground", "-r", filled, status=4)
    assert not (tmp_path / "m").exists()
