"""A quick look sees what a slow one sees: the newest backup that can be restored, its chain, and known damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.unit.builders import NOON, UUID, backup, commit, image, incremental
from vbackup.errors import StorageError
from vbackup.model import Backup, ChangeRecord, Level
from vbackup.repository import glance, manifest, verification
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict, Verification


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repo")


def chain(repository: Repository, count: int = 3) -> list[Backup]:
    """A full, and incrementals that each depend on the one before."""
    backups = [backup(1)]
    for number in range(2, count + 1):
        backups.append(incremental(number, backups[-1]))
    for one in backups:
        commit(repository, one)
    return backups


def seen(repository: Repository, **options: bool) -> glance.Glance:
    return glance.read(repository.path / UUID, UUID, **options)


def is_seen(found: glance.Glance, backup: Backup) -> bool:
    """Whether it is the newest, and all is known of it that is told."""
    newest = found.newest
    told = (backup.id, backup.sequence, backup.time, backup.level.value, backup.size_bytes)
    return newest is not None and (newest.id, newest.sequence, newest.time, newest.level, newest.size_bytes) == told


def test_the_newest_backup_and_its_chain_are_seen(repository: Repository) -> None:
    backups = chain(repository)
    found = seen(repository)
    assert is_seen(found, backups[-1])
    assert (found.uuid, found.name, found.chain_images, found.broken) == (UUID, "web", 3, None)
    assert found.ids == {one.id for one in backups}
    assert [one.id for one in found.latest] == [one.id for one in backups]
    assert found.size_bytes == sum(one.size_bytes for one in backups)
    assert (found.verified, found.verdict, found.damaged, found.unusual) == (None, None, (), ())


def test_it_sees_the_same_as_the_catalogue(repository: Repository) -> None:
    backups = chain(repository, 4)
    (repository.directory(UUID, backups[1].id) / "vda.qcow2").unlink()
    catalogue, found = repository.catalogue(UUID, with_chains=False), seen(repository)
    whole = [one.id for one in catalogue.history.backups if one.id not in {b.id for b in catalogue.broken}]
    assert found.newest is not None
    assert found.newest.id == whole[-1] == backups[0].id
    assert found.broken == next(one.sentence for one in catalogue.broken if one.id == backups[-1].id)


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def _altered(path: Path) -> None:
    path.write_text(path.read_text().replace('"frozen_ms": 0', '"frozen_ms": 1'))


def _strange(path: Path) -> None:
    document = json.loads(path.read_text())
    document["disks"][0]["dev"] = "../../x"
    path.write_text(manifest.text_of(document))


@pytest.mark.parametrize("damage", [_cut, _altered, _strange, Path.unlink])
def test_of_a_newest_backup_whose_manifest_is_damaged_the_one_before_counts(
    repository: Repository, damage: Callable[[Path], None]
) -> None:
    backups = chain(repository)
    damage(repository.directory(UUID, backups[-1].id) / "manifest.json")
    found = seen(repository)
    assert is_seen(found, backups[1])
    assert found.broken is not None
    assert found.broken.startswith(f"Backup {backups[-1].id} is broken: ")
    assert len(found.ids) == 3


def test_a_base_that_is_gone_is_named(repository: Repository) -> None:
    backups = chain(repository)
    (repository.directory(UUID, backups[0].id) / "manifest.json").unlink()
    found = seen(repository)
    assert found.newest is None
    assert found.broken is not None
    assert f"backup {backups[0].id} is missing from the repository; backup {backups[1].id}" in found.broken


def test_an_image_of_another_size_is_not_whole(repository: Repository) -> None:
    backups = chain(repository)
    with (repository.directory(UUID, backups[2].id) / "vda.qcow2").open("ab") as file:
        file.write(b"x")
    found = seen(repository)
    assert is_seen(found, backups[1])
    assert is_seen(seen(repository, has_images=False), backups[2])


def test_a_circle_ends(repository: Repository) -> None:
    first = backup(1, image(level=Level.INCREMENTAL, base=backup(2).id))
    commit(repository, first)
    commit(repository, backup(2, image(base=first.id)))
    found = seen(repository)
    assert found.newest is None
    assert found.broken is not None
    assert "claims to depend on a later one" in found.broken


def test_the_order_is_that_of_commits_and_not_of_clocks(repository: Repository) -> None:
    commit(repository, backup(5, sequence=1))
    last = backup(1, sequence=2)
    commit(repository, last)
    assert is_seen(seen(repository), last)


def test_what_changed_is_a_trend_of_the_latest(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glance, "LATEST", 2)
    change = ChangeRecord(5000, 0, 0, 0, unusual="9 times the usual change")
    for number in (1, 2):
        commit(repository, backup(number, image(copied_bytes=7000)))
    commit(repository, backup(3, image(change=change)))
    found = seen(repository)
    assert [(one.sequence, one.changed_bytes) for one in found.latest] == [(2, 7000), (3, 5000)]
    assert found.unusual == ("Disk vda: 9 times the usual change",)


def test_the_last_verify_and_all_damage_are_seen(repository: Repository) -> None:
    backups = chain(repository)
    later = datetime(2026, 12, 1, tzinfo=timezone.utc)
    for one, verdict, when in ((0, Verdict.DAMAGED, NOON), (1, Verdict.GOOD, later)):
        verification.write(
            repository.directory(UUID, backups[one].id), Verification(when, verdict, percent=100.0, checked_bytes=1)
        )
    (repository.directory(UUID, backups[2].id) / verification.NAME).write_text("{}")
    found = seen(repository)
    assert (found.verified, found.verdict, found.damaged) == (later, Verdict.GOOD, (backups[0].id,))


def test_a_domain_without_backups_has_none(repository: Repository) -> None:
    (repository.path / UUID).mkdir()
    found = seen(repository)
    assert (found.newest, found.ids, found.broken, found.name) == (None, frozenset(), None, UUID)


def test_a_number_of_a_million_digits_is_refused_at_once(repository: Repository) -> None:
    backups = chain(repository)
    path = repository.directory(UUID, backups[0].id) / "manifest.json"
    path.write_text(path.read_text().replace('"sequence": 1', f'"sequence": {"9" * 1_000_000}'))
    assert seen(repository).newest is None


def test_a_directory_that_is_a_link_is_refused(repository: Repository, tmp_path: Path) -> None:
    (repository.path / UUID).symlink_to(tmp_path)
    with pytest.raises(StorageError):
        seen(repository)
