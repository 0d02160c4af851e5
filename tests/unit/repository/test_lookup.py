"""A backup is found by its id alone, as long as that means one backup."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.builders import UUID, backup, commit
from vbackup.errors import ChainError
from vbackup.repository import lookup
from vbackup.repository.lookup import Found
from vbackup.repository.repository import Repository

OTHER = "f0000000-0000-4000-8000-000000000002"
ONE, TWO = backup(1), backup(2)


@pytest.fixture
def filled_repo(repo: Repository) -> Repository:
    commit(repo, ONE)
    commit(repo, TWO)
    commit(repo, replace(ONE, domain_uuid=OTHER, domain_name="db"))
    return repo


def test_id_that_one_domain_has_needs_no_domain(filled_repo: Repository) -> None:
    found = lookup.find(filled_repo, [TWO.id, TWO.id], None)
    assert found == [Found(UUID, TWO.id, filled_repo.directory(UUID, TWO.id))]


def test_id_that_several_have_needs_one(filled_repo: Repository) -> None:
    """As the backups of a group have."""
    with pytest.raises(ChainError, match=f"web \\({UUID}\\), db \\({OTHER}\\)") as raised:
        lookup.find(filled_repo, [TWO.id, ONE.id], None)
    assert raised.value.status == 6
    assert [one.uuid for one in lookup.find(filled_repo, [ONE.id], OTHER)] == [OTHER]


@pytest.mark.parametrize("wrong", ["20200101T000000Z-full", "../x", "", "lock", f"{ONE.id}.partial"])
def test_what_is_no_backup_is_refused_with_what_lists_them(filled_repo: Repository, wrong: str) -> None:
    (filled_repo.path / UUID / f"{ONE.id}.partial").mkdir()
    for uuid in (None, UUID):
        with pytest.raises(ChainError, match="'vbackup list DOMAIN'"):
            lookup.find(filled_repo, [ONE.id, wrong] if uuid else [wrong], uuid)


def test_backup_whose_manifest_cannot_be_read_is_found(filled_repo: Repository) -> None:
    (filled_repo.directory(UUID, TWO.id) / "manifest.json").unlink()
    assert lookup.find(filled_repo, [TWO.id], None)[0].id == TWO.id
