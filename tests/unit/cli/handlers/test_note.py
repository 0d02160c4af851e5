"""``vbackup note`` gives a backup one line of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup
from vbackup.repository import notes

if TYPE_CHECKING:
    from tests.conftest import Command

ONE = backup(1)


@pytest.mark.parametrize("domain", [[], ["web"], ["--domain", "web"]], ids=" ".join)
def test_note_is_written_and_removed(command: Command, filled: Path, domain: list[str]) -> None:
    text = command("note", *domain, ONE.id, "before the upgrade", "-r", filled).stdout
    assert text == f"Backup {ONE.id} of domain web has the note: before the upgrade\n"
    assert notes.read(filled / UUID / ONE.id) == "before the upgrade"
    assert "has no note any more" in command("note", *domain, ONE.id, "", "-r", filled).stdout
    assert notes.read(filled / UUID / ONE.id) is None


def test_note_as_a_document(command: Command, filled: Path) -> None:
    document = command("note", ONE.id, "text", "-r", filled, "--json").document
    assert document == {
        "schema": "vbackup.note/1",
        "domain": {"name": "web", "uuid": UUID},
        "id": ONE.id,
        "note": "text",
    }
    assert command("note", ONE.id, "", "-r", filled, "--json").document["note"] is None
    assert command("note", ONE.id, "text", "-r", filled, "-q").stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "No backup given"),
        ([ONE.id], 2, "No text given"),
        ([ONE.id, "two", "words"], 2, "in quotes"),
        ([ONE.id, "a\x1b[31m"], 2, "cannot be printed"),
        ([ONE.id, "x" * 1001], 2, "at most 1000"),
        (["web", "text"], 6, "No backup 'web'"),
        (["nosuch", ONE.id, "text"], 4, "No domain"),
    ],
)
def test_bad_input_is_told(command: Command, filled: Path, words: list[str], status: int, said: str) -> None:
    assert said in command("note", *words, "-r", filled, status=status).stderr
    assert notes.read(filled / UUID / ONE.id) is None
