"""What stays whatever the rules say: protected, read, a base of the next backup, or needed by what may be repaired."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.builders import NOON, SIZE_BYTES, UUID, backup, commit, incremental, qcow2_image
from vbackup.errors import NewerJournalError
from vbackup.repository import protection, readers, standbys, stays, verification
from vbackup.repository.journal import Journal
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.repository.standbys import Record
from vbackup.repository.verification import Verdict, Verification

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)
FOUR = backup(4)


@pytest.fixture
def paths(repo: Repository) -> dict[str, Path]:
    return {one.id: commit(repo, one) for one in (ONE, TWO, THREE, FOUR)}


def test_nothing_special_holds_only_the_base_of_the_next(repo: Repository, paths: dict[str, Path]) -> None:
    facts = stays.read(repo, UUID)
    assert {one: facts.reasons_to_stay(one) for one in paths if facts.reasons_to_stay(one)} == {
        FOUR.id: ["the next incremental of vda starts from it"]
    }


def test_protected_and_read_backups_stay(repo: Repository, paths: dict[str, Path]) -> None:
    protection.protect(paths[ONE.id], Protection(NOON, "the last before the move"))
    protection.protect(paths[TWO.id], Protection())
    with readers.reading([paths[TWO.id]]):
        facts = stays.read(repo, UUID)
    assert facts.reasons_to_stay(ONE.id) == ["protected (the last before the move)"]
    assert facts.reasons_to_stay(TWO.id) == ["protected", stays.IN_USE]
    assert stays.read(repo, UUID).reasons_to_stay(TWO.id) == ["protected"]


def test_what_a_standby_is_like_stays(repo: Repository, paths: dict[str, Path]) -> None:
    """Its changes since then are an incremental, and the original gets what it had."""
    standbys.put(repo.path / UUID, Record("qemu:///system", Path("/standby"), ONE.id, NOON, failback=TWO.id))
    standbys.put(repo.path / UUID, Record("qemu:///session", Path("/new")))
    facts = stays.read(repo, UUID)
    assert facts.reasons_to_stay(ONE.id) == ["the standby at qemu:///system is like it"]
    assert facts.reasons_to_stay(TWO.id) == ["the standby at qemu:///system is like it"]
    assert facts.reasons_to_stay(THREE.id) == []


def test_what_a_broken_backup_depends_on_stays(repo: Repository, paths: dict[str, Path]) -> None:
    """With the lost file from a copy it is whole again."""
    (paths[TWO.id] / "vda.qcow2").unlink()
    facts = stays.read(repo, UUID)
    assert facts.broken.keys() == {TWO.id, THREE.id}
    assert facts.reasons_to_stay(ONE.id) == [f"{TWO.id}, which is broken, depends on it"]


def test_backup_in_which_verify_found_damage_is_broken(repo: Repository, paths: dict[str, Path]) -> None:
    """It must not take the place of a good one."""
    verification.write(paths[TWO.id], Verification(NOON, Verdict.DAMAGED, 100, 65536))
    facts = stays.read(repo, UUID)
    assert facts.broken == {TWO.id: stays.DAMAGED}
    assert facts.reasons_to_stay(ONE.id) == [f"{TWO.id}, which is broken, depends on it"]


def test_headers_tell_what_a_backup_without_manifest_depends_on(repo: Repository, paths: dict[str, Path]) -> None:
    (paths[THREE.id] / "manifest.json").write_text("{")
    for name, backing in (("vda", f"../{TWO.id}/vda.qcow2"), ("vdb", "../../etc/x"), ("vdc", None), ("vdd", "x" * 999)):
        (paths[THREE.id] / f"{name}.qcow2").write_bytes(qcow2_image(SIZE_BYTES, backing=backing))
    (paths[THREE.id] / "vde.qcow2").write_bytes(b"torn")
    os.mkfifo(paths[THREE.id] / "vdf.qcow2")
    facts = stays.read(repo, UUID)
    assert facts.broken.keys() == {THREE.id}
    assert facts.reasons_to_stay(TWO.id) == [f"{THREE.id}, which is broken, depends on it"]
    assert facts.reasons_to_stay(TWO.id, but=[THREE.id]) == []
    assert facts.needed_by.keys() == {TWO.id}


def test_what_an_unfinished_backup_depends_on_stays(repo: Repository, paths: dict[str, Path]) -> None:
    """'vbackup recover' can still finish it, and QEMU may have the base's image open."""
    five = incremental(5, TWO)
    stage = repo.stage_path(UUID, five.id)
    stage.mkdir()
    with Journal(stage) as written:
        written.begin(five)
    (repo.stage_path(UUID, "20261123T990000Z-full")).mkdir()  # without a journal
    (repo.path / UUID / "20261123T980000Z-full.partial").mkdir()
    (repo.path / UUID / "20261123T980000Z-full.partial" / "journal").write_text("{\n")
    assert stays.read(repo, UUID).reasons_to_stay(TWO.id) == [f"{five.id}, which is unfinished, depends on it"]


def test_journal_of_a_newer_vbackup_ends_it(repo: Repository, paths: dict[str, Path]) -> None:
    stage = repo.stage_path(UUID, "20261124T120000Z-full")
    stage.mkdir()
    (stage / "journal").write_text('{"schema": "vbackup.journal/9"}\n')
    with pytest.raises(NewerJournalError):
        stays.read(repo, UUID)
    assert paths
