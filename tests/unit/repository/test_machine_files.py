"""Only what the manifest records is given to a machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import backup, commit
from vbackup import archive
from vbackup.errors import ChainError, StorageError
from vbackup.files import digest_of
from vbackup.model import Backup, MachineFile, MachineKind
from vbackup.repository import machine_files
from vbackup.repository.repository import Repository

STATE = {"tpm2-00.permall": b"keys", "a/b": b"more"}


def nothing() -> None:
    pass


class Kept:
    """A backup with one file of its machine."""

    def __init__(self, repository: Repository, kind: MachineKind, data: bytes) -> None:
        self.repository = repository
        self.file = MachineFile(kind, len(data), digest_of(data), "/original")
        self.backup: Backup = backup(1, machine=(self.file,))
        self.path = commit(repository, self.backup) / self.file.file
        self.path.write_bytes(data)

    def check(self, **more: Any) -> None:
        machine_files.check(self.repository, self.backup, self.file, stop=nothing, **more)

    def write(self, path: Path) -> None:
        machine_files.write(self.repository, self.backup, self.file, path, stop=nothing)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repository")


def test_file_is_written_as_it_was(repository: Repository, tmp_path: Path) -> None:
    data = os.urandom(3 * 1024 * 1024 + 1)
    kept = Kept(repository, MachineKind.INITRD, data)
    kept.check()
    kept.write(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError):
        kept.write(tmp_path / "out")


def test_state_of_a_tpm_becomes_its_directory_again(repository: Repository, tmp_path: Path) -> None:
    kept = Kept(repository, MachineKind.TPM, archive.pack(STATE))
    kept.check()
    kept.write(tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in STATE} == STATE
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out", tmp_path / "out" / "a")}
    assert modes == {0o700}
    assert (tmp_path / "out" / "a" / "b").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", [MachineKind.KERNEL, MachineKind.TPM])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "its digest differs"),
        (lambda path: path.unlink(), "is missing|cannot be read"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "has .* bytes; it had|cannot be read"),
        (lambda path: os.truncate(path, 3), "has 3 bytes; it had|its digest differs"),
    ],
    ids=["altered", "missing", "a link", "cut"],
)
def test_damaged_file_is_found_and_never_written(
    repository: Repository, tmp_path: Path, kind: MachineKind, damage: Any, said: str
) -> None:
    kept = Kept(repository, kind, archive.pack(STATE))
    damage(kept.path)
    with pytest.raises(ChainError, match=said):
        kept.check()
    with pytest.raises(ChainError, match=said):
        kept.write(tmp_path / "out")


def test_archive_that_leads_elsewhere_is_refused(repository: Repository, tmp_path: Path) -> None:
    """Whoever can write the archive can write its digest too."""
    kept = Kept(repository, MachineKind.TPM, archive.pack({"../../escaped": b"x"}))
    with pytest.raises(ChainError, match="is no archive of a TPM's state: it has an entry that does not belong there"):
        kept.write(tmp_path / "a" / "out")
    assert not (tmp_path / "escaped").exists()


def test_quick_check_does_not_read_what_is_large(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(repository, MachineKind.INITRD, b"abcd")
    kept.path.write_bytes(b"efgh")
    monkeypatch.setattr(machine_files, "QUICK_BYTES", 3)
    kept.check(quick=True)
    with pytest.raises(ChainError):
        kept.check()
    monkeypatch.setattr(machine_files, "QUICK_BYTES", 4)
    with pytest.raises(ChainError):
        kept.check(quick=True)


def test_size_that_was_not_recorded_is_not_compared(repository: Repository) -> None:
    kept = Kept(repository, MachineKind.NVRAM, b"variables")
    machine_files.check(
        repository, kept.backup, MachineFile(MachineKind.NVRAM, None, digest_of(b"variables"), None), stop=nothing
    )
