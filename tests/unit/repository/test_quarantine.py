"""What is put away keeps its names, and nothing takes the place of what is there already."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.repository import quarantine
from vbackup.repository.repository import Repository


@pytest.fixture
def file(repo: Repository) -> Path:
    path = repo.path / "uuid" / "id" / "vda.qcow2"
    path.parent.mkdir(parents=True)
    path.write_text("old")
    return path


def test_directory_keeps_its_name_and_takes_no_other_s(repo: Repository, file: Path) -> None:
    kept = quarantine.put(repo, file.parent)
    assert kept == repo.path / "quarantine" / "uuid" / "id"
    assert (kept / "vda.qcow2").read_text() == "old"
    file.parent.mkdir()
    file.write_text("newer")
    assert quarantine.put(repo, file.parent).name == "id.1"
    assert (kept / "vda.qcow2").read_text() == "old"
    assert {path.stat().st_mode & 0o777 for path in (repo.path / "quarantine", kept.parent)} == {0o700}


@pytest.mark.parametrize("has_links", [True, False])
def test_replaced_file_is_kept(repo: Repository, file: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file cannot have two names."""

    def refused(*_paths: Path, **_more: bool) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refused)
    new = file.with_name(".repaired-vda.qcow2")
    new.write_text("new")
    kept = quarantine.replace(repo, file, new)
    assert kept is not None
    assert (file.read_text(), kept.read_text(), new.exists()) == ("new", "old", False)
    assert kept == repo.path / "quarantine" / "replaced" / "uuid" / "id" / "vda.qcow2"


def test_file_that_was_missing_is_put_in_place(repo: Repository, file: Path) -> None:
    new = file.with_name("new")
    file.rename(new)
    assert quarantine.replace(repo, file, new) is None
    assert file.read_text() == "old"


def test_error_names_what_was_to_be_moved(repo: Repository) -> None:
    with pytest.raises(StorageError, match=r"Cannot move .*missing"):
        quarantine.put(repo, repo.path / "missing")


def test_what_was_put_away_is_known_by_domain(repo: Repository) -> None:
    uuid, backup_id = "f0000000-0000-4000-8000-000000000001", "20261123T130000Z-full"
    assert (quarantine.uuids(repo), quarantine.backups(repo, uuid)) == ([], [])
    for name in (backup_id, "other"):
        (repo.path / uuid / name).mkdir(parents=True)
        quarantine.put(repo, repo.path / uuid / name)
    (repo.path / "quarantine" / "replaced").mkdir()
    assert (quarantine.uuids(repo), quarantine.backups(repo, uuid)) == ([uuid], [backup_id])
