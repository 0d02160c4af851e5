"""A place is shown as compilers and editors have it."""

from __future__ import annotations

from pathlib import Path

from vbackup.config.model import Place, When


def test_place_is_shown_with_file_and_line() -> None:
    assert str(Place(Path("/etc/vbackup/vbackup.toml"), 12)) == "/etc/vbackup/vbackup.toml:12"


def test_words_of_when_are_those_of_the_files() -> None:
    assert [When(word) for word in ("failure", "recovery", "overdue", "unusual", "always")] == list(When)
