"""A removed backup is gone for every reader at once, and its files whenever they can be deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.builders import UUID, backup, commit, incremental
from vbackup.errors import StorageError
from vbackup.repository import readers, removal
from vbackup.repository.repository import Repository

ONE = backup(1)
TWO = incremental(2, ONE)


def test_backup_that_is_taken_away_is_no_backup_and_then_no_files(repo: Repository) -> None:
    commit(repo, ONE)
    directory = commit(repo, TWO)
    assert removal.take_away(directory)
    catalogue = repo.catalogue(UUID)
    assert (catalogue.history.backups, catalogue.broken) == ((ONE,), ())
    assert repo.unfinished(UUID) == []
    assert [path.name for path in removal.removed(repo.path / UUID)] == [f".removed-{TWO.id}"]
    assert removal.delete_removed(repo.path / UUID) == []
    assert sorted(path.name for path in (repo.path / UUID).iterdir()) == [ONE.id, "domain.json", "lock"]
    assert removal.delete_removed(repo.path / UUID) == []


def test_backup_that_is_read_stays(repo: Repository) -> None:
    directory = commit(repo, ONE)
    with readers.reading([directory]):
        assert not removal.take_away(directory)
    assert repo.catalogue(UUID).history.backups == (ONE,)
    assert removal.take_away(directory)


def test_rest_that_cannot_be_deleted_is_named_and_does_not_hinder_the_next(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert removal.take_away(commit(repo, ONE))
    rest = repo.path / UUID / f".removed-{ONE.id}"

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", refuse)
        assert removal.delete_removed(repo.path / UUID) == [f"{rest}: Operation not permitted"]
    assert removal.take_away(commit(repo, ONE))
    assert len(removal.removed(repo.path / UUID)) == 2
    assert removal.delete_removed(repo.path / UUID) == []
    assert removal.removed(repo.path / UUID) == []


def test_link_in_place_of_a_rest_is_removed_and_not_followed(repo: Repository, tmp_path: Path) -> None:
    directory = commit(repo, ONE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (repo.path / UUID / ".removed-x").symlink_to(tmp_path / "other")
    assert removal.delete_removed(repo.path / UUID) == []
    assert (tmp_path / "other" / "file").exists()
    assert directory.exists()


def test_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot remove"):
        removal.take_away(tmp_path / "gone")
    with pytest.raises(StorageError, match="Cannot read"):
        removal.removed(tmp_path / "gone")


def test_room_is_what_files_take(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 100_000)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert 100_000 <= removal.allocated_bytes(tmp_path) <= 200_000
    assert removal.allocated_bytes(tmp_path / "gone") == 0
