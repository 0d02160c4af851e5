"""A note is changed with the domain's lock, so that nobody removes the backup meanwhile."""

from __future__ import annotations

import pytest

from tests.unit.builders import UUID, Recorder, backup, commit
from vbackup.errors import BusyError, ChainError
from vbackup.operations import note
from vbackup.operations.note import NoteRequest
from vbackup.repository import notes
from vbackup.repository.lookup import Found
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

ONE = backup(1)


def run(repo: Repository, text: str, backup_id: str = ONE.id) -> Found:
    return note.run(NoteRequest(backup_id, text), repository=repo, reporter=Recorder(), stop=Stop())


def test_note_is_written_changed_and_removed(repo: Repository) -> None:
    path = commit(repo, ONE)
    for text, expected in (("one", "one"), ("two", "two"), ("", None), ("", None)):
        assert run(repo, text) == Found(UUID, ONE.id, path)
        assert notes.read(path) == expected


def test_unknown_backup_and_busy_domain_are_told(repo: Repository) -> None:
    path = commit(repo, ONE)
    with pytest.raises(ChainError, match="No backup"):
        run(repo, "text", "x")
    with repo.lock(UUID), pytest.raises(BusyError):
        run(repo, "text")
    assert notes.read(path) is None
