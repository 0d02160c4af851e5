"""A note is one line for people, kept beside the manifest, and no backup needs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.builders import UUID, backup, commit
from vbackup.errors import StorageError
from vbackup.repository import notes
from vbackup.repository.notes import MAX_CHARACTERS, NOTE
from vbackup.repository.repository import Repository


def test_note_is_read_as_it_was_written_until_it_is_removed(tmp_path: Path) -> None:
    assert notes.read(tmp_path) is None
    for text in ("before the upgrade to 14", "für später: käse 🧀", "x" * MAX_CHARACTERS, "𐍈" * MAX_CHARACTERS):
        assert notes.fault(text) is None
        notes.write(tmp_path, text)
        assert notes.read(tmp_path) == text
        assert (tmp_path / NOTE).read_bytes() == notes.data(text)
    notes.remove(tmp_path)
    assert notes.read(tmp_path) is None
    notes.remove(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("two\nlines", r"'\\n'"),
        ("red \x1b[31m", r"'\\x1b'"),
        ("from the right \u202e", r"'\\u202e'"),
        ("no UTF-8 \udcff", r"'\\udcff'"),
        ("x" * (MAX_CHARACTERS + 1), "at most 1000"),
    ],
)
def test_text_that_would_spoil_a_list_is_no_note(tmp_path: Path, text: str, why: str) -> None:
    assert re.search(why, notes.fault(text) or "")
    (tmp_path / NOTE).write_bytes(text.encode(errors="surrogateescape"))
    assert notes.read(tmp_path) is None


def test_file_that_vbackup_did_not_write_is_no_note(tmp_path: Path) -> None:
    (tmp_path / NOTE).write_bytes(b"\xff")
    assert notes.read(tmp_path) is None
    (tmp_path / NOTE).unlink()
    (tmp_path / NOTE).symlink_to("/etc/hostname")
    assert notes.read(tmp_path) is None


def test_backup_that_is_gone_gets_no_note(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        notes.write(tmp_path / "gone", "text")


def test_backup_is_read_as_before(repo: Repository) -> None:
    one = backup(1)
    notes.write(commit(repo, one), "text")
    assert repo.catalogue(UUID).history.backups == (one,)
