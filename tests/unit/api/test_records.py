"""What a repository has, as a program sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.unit.builders import UUID, backup, backup_id, commit
from vbackup import api
from vbackup.api import BackupFilter, BackupState, DiffRequest, UsageRequest
from vbackup.errors import ChainError, DomainNotFoundError, UsageError
from vbackup.model import Level
from vbackup.repository.repository import Repository

OTHER = "f0000000-0000-4000-8000-000000000002"


def test_domain_has_its_backups_in_order(filled: Path) -> None:
    vb = api.connect(repository=filled)
    assert vb.domains() == [(UUID, "web")]
    [record] = vb.records("web")
    assert (record.uuid, record.name, [one.level for one in record.backups]) == (
        UUID,
        "web",
        [Level.FULL, Level.INCREMENTAL],
    )
    assert set(record.conditions) == {one.id for one in record.backups}
    with pytest.raises(DomainNotFoundError):
        vb.records("db")


def test_all_domains_are_sorted_by_name(filled: Path) -> None:
    commit(Repository.open(filled), backup(3, domain_uuid=OTHER, domain_name="db"))
    vb = api.connect(repository=filled)
    assert [(one.name, len(one.backups)) for one in vb.records()] == [("db", 1), ("web", 2)]


def test_unfinished_and_broken_backups_are_told_apart(filled: Path) -> None:
    (filled / UUID / f"{backup_id(7)}.partial").mkdir()
    (filled / UUID / backup_id(1) / "manifest.json").write_text("{")
    [record] = api.connect(repository=filled).records()
    assert (list(record.unfinished), list(record.running)) == ([backup_id(7)], [])
    assert backup_id(1) in {one.id for one in record.broken}
    assert [one.id for one in record.backups] != []


def test_filter_keeps_what_is_asked_for(filled: Path) -> None:
    vb = api.connect(repository=filled)
    [record] = vb.records(wanted=BackupFilter(levels=(Level.FULL,)))
    assert [one.level for one in record.backups] == [Level.FULL]
    assert vb.records(wanted=BackupFilter(host="elsewhere")) == []
    (filled / UUID / f"{backup_id(7)}.partial").mkdir()
    [unfinished] = vb.records(wanted=BackupFilter(states=(BackupState.UNFINISHED,)))
    assert (list(unfinished.backups), list(unfinished.unfinished)) == ([], [backup_id(7)])


def test_backup_has_its_chain_and_its_place(filled: Path) -> None:
    vb = api.connect(repository=filled)
    newest = vb.record("web")
    older = vb.record(UUID, newest.backup.parent)
    assert newest.chains["vda"] == [newest.backup.id, older.backup.id]
    assert older.chains["vda"] == [older.backup.id]
    assert newest.path == filled / UUID / newest.backup.id
    assert newest.condition.chain_images == 2
    with pytest.raises(ChainError):
        vb.record("web", backup_id(9))


def test_owner_of_a_backup_is_unique(filled: Path) -> None:
    vb = api.connect(repository=filled)
    assert vb.owner_of(backup_id(1)) == UUID
    with pytest.raises(ChainError, match="No backup"):
        vb.owner_of(backup_id(9))
    commit(Repository.open(filled), backup(1, domain_uuid=OTHER, domain_name="db"))
    with pytest.raises(UsageError, match=f"web .{UUID}."):
        vb.owner_of(backup_id(1))


def test_difference_is_read_from_the_lists(recorded: Recorded) -> None:
    vb = api.connect(repository=recorded.repository.path)
    first, second = (one.id for one in recorded.backups[:2])
    with vb.diff(DiffRequest(recorded.backups[0].domain_name, first, second)) as difference:
        assert (difference.before.id, difference.after.id) == (first, second)
        with difference.comparison(difference.disks[0]) as comparison:
            assert sum(extent.length_bytes for extent in comparison.extents()) > 0


def test_room_is_that_of_the_files(recorded: Recorded) -> None:
    vb = api.connect(repository=recorded.repository.path)
    whole, none = vb.usage(), vb.usage(UsageRequest(()))
    assert whole.room.own_bytes > 0
    assert [one.name for one in whole.domains] == [name for _, name in vb.domains()]
    assert none.domains == ()
