"""``vbackup init`` makes a repository and prints its id."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vbackup.repository import place
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command


def test_init_of_a_repository_is_status_seven(command: Command, filled: Path) -> None:
    assert "is already a vbackup repository; nothing was changed" in command("init", "-r", filled, status=7).stderr


def test_init_tells_the_id(command: Command, tmp_path: Path) -> None:
    outcome = command("init", "-r", tmp_path / "r")
    assert Repository.open(tmp_path / "r").id in outcome.stdout


def test_init_tells_that_files_are_not_locked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("init", "-r", tmp_path / "locks").stderr == ""
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _operation: None)
    assert "does not lock files (flock)" in command("init", "-r", tmp_path / "does-not").stderr


def test_init_as_a_document(command: Command, tmp_path: Path) -> None:
    made = command("init", "-r", tmp_path / "r", "--json").document
    opened = Repository.open(tmp_path / "r")
    encrypted = place.is_encrypted(tmp_path)
    assert made == {
        "schema": "vbackup.init/1",
        "path": os.fspath(opened.path),
        "id": opened.id,
        "encrypted": encrypted,
    }


@pytest.mark.parametrize(
    ("encrypted", "words"), [(True, "is encrypted."), (False, "is not encrypted: whoever"), (None, "is not known")]
)
def test_init_tells_whether_the_filesystem_is_encrypted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool | None, words: str
) -> None:
    monkeypatch.setattr(place, "is_encrypted", lambda _path: encrypted)
    assert words in command("init", "-r", tmp_path / "r").stdout
