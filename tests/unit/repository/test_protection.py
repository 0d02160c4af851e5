"""A protected backup is one whatever its file says, and protection never changes how the backup is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.builders import NOON, UUID, backup, commit
from vbackup.errors import StorageError
from vbackup.repository import protection
from vbackup.repository.protection import PROTECTED, Protection
from vbackup.repository.repository import Repository


def test_backup_is_protected_until_it_is_not(tmp_path: Path) -> None:
    assert protection.read(tmp_path) is None
    given = Protection(NOON, "the last one before the move")
    protection.protect(tmp_path, given)
    assert protection.read(tmp_path) == given
    assert (tmp_path / PROTECTED).stat().st_mode & 0o777 == 0o600
    protection.protect(tmp_path, Protection(NOON))
    assert protection.read(tmp_path) == Protection(NOON)
    protection.unprotect(tmp_path)
    assert protection.read(tmp_path) is None
    protection.unprotect(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b'{"time": 1}', b'{"time": "yesterday"}', b"[" * 60_000, b" " * 70_000],
    ids=["empty", "torn", "binary", "a list", "number", "no time", "deep", "huge"],
)
def test_file_that_cannot_be_read_protects(tmp_path: Path, content: bytes) -> None:
    """As one does that was made by hand with 'touch'."""
    (tmp_path / PROTECTED).write_bytes(content)
    assert protection.read(tmp_path) == Protection()


def test_whatever_has_the_name_protects_and_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / PROTECTED).symlink_to("nowhere")
    assert protection.read(tmp_path) == Protection()
    protection.unprotect(tmp_path)
    os.mkfifo(tmp_path / PROTECTED)
    assert protection.read(tmp_path) == Protection()


def test_backup_that_is_gone_cannot_be_protected(tmp_path: Path) -> None:
    assert protection.read(tmp_path / "gone") is None
    with pytest.raises(StorageError, match="Cannot write"):
        protection.protect(tmp_path / "gone", Protection(NOON))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Cannot remove"):
        protection.unprotect(tmp_path / "file")


def test_backup_is_read_as_before(repo: Repository) -> None:
    one = backup(1)
    protection.protect(commit(repo, one), Protection(NOON, "because"))
    catalogue = repo.catalogue(UUID)
    assert (catalogue.history.backups, catalogue.broken) == ((one,), ())
