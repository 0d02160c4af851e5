"""The journal of merges: there while one runs, and after it only if it has to be finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.builders import backup_id
from vbackup.errors import ChainError, StorageError
from vbackup.repository import merge_journal
from vbackup.repository.merge_journal import MergeJournal

A, B = backup_id(1), backup_id(2)


def test_journal_is_there_while_a_merge_runs(tmp_path: Path) -> None:
    assert merge_journal.read(tmp_path) is None
    with MergeJournal(tmp_path, [A]):
        entry = merge_journal.read(tmp_path)
        assert entry is not None
        assert (entry.removed, entry.in_place) == ((A,), ())
        assert entry.is_of(tmp_path)
        assert entry.writer.process.lives
    assert list(tmp_path.iterdir()) == []


def test_journal_of_a_merge_in_place_stays_until_it_is_finished(tmp_path: Path) -> None:
    with MergeJournal(tmp_path, [A, B]) as written:
        written.set_in_place([B, A])
    assert merge_journal.in_place(tmp_path) == {A, B}
    with MergeJournal(tmp_path, [A, B], in_place=[A]) as written:
        assert merge_journal.in_place(tmp_path) == {A}
        written.set_in_place([])
    assert merge_journal.read(tmp_path) is None
    assert merge_journal.in_place(tmp_path) == frozenset()


def test_copy_of_a_repository_is_told_from_the_original(tmp_path: Path) -> None:
    with MergeJournal(tmp_path, []):
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / merge_journal.NAME).write_bytes((tmp_path / merge_journal.NAME).read_bytes())
        entry = merge_journal.read(copy)
    assert entry is not None
    assert not entry.is_of(copy)


@pytest.mark.parametrize("text", ["{", '{"schema": 1}', '{"schema": "vbackup.merge/1"}', "[]"])
def test_damaged_journal_is_named_and_hides_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / merge_journal.NAME).write_text(text)
    with pytest.raises(ChainError, match=r"merge\.json is damaged .* 'vbackup check --repair'"):
        merge_journal.read(tmp_path)
    assert merge_journal.in_place(tmp_path) == frozenset()


def test_journal_of_a_newer_vbackup_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / merge_journal.NAME).write_text('{"schema": "vbackup.merge/2"}')
    with pytest.raises(StorageError, match="use the newer vbackup"):
        merge_journal.read(tmp_path)


def test_ids_become_no_paths_unless_they_are_ids(tmp_path: Path) -> None:
    with MergeJournal(tmp_path, ["../x"]), pytest.raises(ChainError, match="not a backup id"):
        merge_journal.read(tmp_path)
