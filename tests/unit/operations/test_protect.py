"""Protection is changed for all the backups that are named, or for none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder, backup, commit
from vbackup.errors import BusyError, ChainError
from vbackup.operations import protect
from vbackup.operations.protect import Changed, ProtectRequest
from vbackup.repository import protection, removal
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

OTHER = "f0000000-0000-4000-8000-000000000002"
ONE, TWO = backup(1), backup(2)


@pytest.fixture
def paths(repo: Repository) -> list[Path]:
    return [commit(repo, ONE), commit(repo, replace(TWO, domain_uuid=OTHER, domain_name="db"))]


def run(repo: Repository, *ids: str, **more: Any) -> list[Changed]:
    return protect.run(ProtectRequest(ids, **more), repository=repo, reporter=Recorder(), stop=Stop())


def test_backups_of_two_domains_are_protected_at_once(repo: Repository, paths: list[Path]) -> None:
    changed = run(repo, ONE.id, TWO.id, reason="audit")
    assert [(one.domain_name, one.backup.id) for one in changed] == [("web", ONE.id), ("db", TWO.id)]
    for one, path in zip(changed, paths):
        assert one.protection == protection.read(path)
        assert one.protection is not None
        assert one.protection.reason == "audit"
        assert one.protection.since is not None
    assert [one.protection for one in run(repo, ONE.id, TWO.id, is_protected=False)] == [None, None]
    assert [protection.read(path) for path in paths] == [None, None]


def test_protection_keeps_its_time_and_reason_until_there_is_a_new_reason(repo: Repository, paths: list[Path]) -> None:
    (before,) = run(repo, ONE.id, reason="audit")
    assert run(repo, ONE.id) == [before]
    (after,) = run(repo, ONE.id, reason="trial")
    assert after.protection is not None
    assert after.protection.reason == "trial"
    assert paths


def test_unknown_backup_changes_nothing(repo: Repository, paths: list[Path]) -> None:
    with pytest.raises(ChainError, match="No backup"):
        run(repo, ONE.id, backup(9).id)
    with pytest.raises(ChainError, match="of this domain"):
        run(repo, ONE.id, TWO.id, uuid=UUID)
    assert protection.read(paths[0]) is None


def test_domain_that_another_vbackup_works_on_is_busy(repo: Repository, paths: list[Path]) -> None:
    with repo.lock(UUID), pytest.raises(BusyError):
        run(repo, ONE.id)
    assert protection.read(paths[0]) is None


def test_backup_that_was_removed_a_moment_ago_is_not_protected(
    repo: Repository, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the search and the lock."""
    really = Repository.lock

    def lock(self: Repository, uuid: str, **more: Any) -> Any:
        assert removal.take_away(paths[0])
        return really(self, uuid, **more)

    monkeypatch.setattr(Repository, "lock", lock)
    with pytest.raises(ChainError, match="No backup"):
        run(repo, ONE.id)
