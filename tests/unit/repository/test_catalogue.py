"""Backups are read in their order, and one that cannot be restored is listed with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.unit.builders import NOON, UUID, backup, backup_id, commit, incremental
from vbackup.errors import ChainError
from vbackup.model import Backup, DiskImage, Level
from vbackup.repository import manifest
from vbackup.repository.repository import Repository

OTHER = "f0000000-0000-4000-8000-000000000002"
ONE = backup(1)
TWO = incremental(2, ONE)


def test_backups_are_in_the_order_of_their_commits(repo: Repository) -> None:
    early = replace(TWO, id=backup_id(0, Level.INCREMENTAL), sequence=2)
    commit(repo, ONE)
    commit(repo, early)
    assert [one.id for one in repo.catalogue(UUID).history.backups] == [ONE.id, early.id]


def test_order_does_not_come_from_mtimes(repo: Repository) -> None:
    for one in (ONE, TWO):
        path = commit(repo, one)
        os.utime(path, (0, 1_000_000 - one.sequence))
        os.utime(path / "manifest.json", (0, 1_000_000 - one.sequence))
    assert [one.id for one in repo.catalogue(UUID).history.backups] == [ONE.id, TWO.id]


def test_domain_without_backups_has_an_empty_catalogue(repo: Repository) -> None:
    catalogue = repo.catalogue(UUID)
    assert (catalogue.history.backups, catalogue.broken, catalogue.names) == ((), (), (UUID,))


def broken(repo: Repository) -> dict[str, str]:
    return {one.id: one.reason for one in repo.catalogue(UUID).broken}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "manifest.json").unlink(), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text("{"), "not JSON"),
        (lambda path: os.truncate(path / "manifest.json", 0), "is it truncated"),
        (lambda path: os.truncate(path / "manifest.json", 4096), "is it truncated"),
        (lambda path: [entry.unlink() for entry in path.iterdir()], "No such file"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff"), "cannot be read"),
        (lambda path: ((path / "manifest.json").unlink(), (path / "manifest.json").mkdir()), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text(manifest.dump(TWO)), "it belongs to backup"),
        (lambda path: (path / "manifest.json").write_text(manifest.dump(replace(ONE, domain_uuid=OTHER))), OTHER),
        (lambda path: (path / "manifest.json").write_bytes(b" " * (manifest.MAX_SIZE_BYTES + 1)), "larger"),
    ],
    ids=[
        "missing",
        "torn",
        "empty",
        "filled up with zeros",
        "gone with all else",
        "binary",
        "a directory",
        "another backup's",
        "another domain's",
        "huge",
    ],
)
def test_manifest_that_cannot_be_read_makes_the_backup_broken(
    repo: Repository, damage: Callable[[Path], object], said: str
) -> None:
    damage(commit(repo, ONE))
    assert list(broken(repo)) == [ONE.id]
    assert said in broken(repo)[ONE.id]


def unlink_and_link(path: Path) -> None:
    (path / "vda.qcow2").rename(path / "elsewhere")
    (path / "vda.qcow2").symlink_to("elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "vda.qcow2").unlink(),
        lambda path: (path / "vda.qcow2").write_bytes(b"short"),
        unlink_and_link,
    ],
    ids=["missing", "another size", "a link"],
)
def test_damaged_image_makes_all_that_stand_on_it_broken(repo: Repository, damage: Callable[[Path], object]) -> None:
    path = commit(repo, ONE)
    commit(repo, TWO)
    damage(path)
    assert set(broken(repo)) == {ONE.id, TWO.id}
    assert all(ONE.id in reason for reason in broken(repo).values())


def test_missing_link_makes_those_above_it_broken(repo: Repository) -> None:
    commit(repo, TWO)
    full = replace(backup(3), sequence=3)
    commit(repo, full)
    assert list(broken(repo)) == [TWO.id]
    assert f"backup {ONE.id} is missing" in broken(repo)[TWO.id]


def test_backup_whose_images_are_being_exchanged_names_the_remedy(repo: Repository) -> None:
    """Where directories cannot exchange their names, images are there before the manifest."""
    one = backup(1)
    above = incremental(2, one)
    directory = commit(repo, one)
    commit(repo, above)
    (directory / "vda.qcow2").write_bytes(b"larger" * 100000)
    assert not any("vbackup recover" in each.reason for each in repo.catalogue(UUID).broken)
    stage = directory.with_name(f".merge-{one.id}")
    stage.mkdir()
    (stage / "publish").touch()
    reasons = [each.reason for each in repo.catalogue(UUID).broken]
    assert len(reasons) == 2
    assert all("'vbackup recover' finishes it" in reason for reason in reasons)


def test_no_link_of_a_long_chain_is_followed_twice(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time to list a chain would grow with the square of its length."""
    newest, length = ONE, 50
    commit(repo, newest)
    for number in range(2, length + 1):
        newest = incremental(number, newest)
        commit(repo, newest)
    looked_at: list[str] = []
    original = Backup.image

    def image(self: Backup, dev: str) -> DiskImage | None:
        looked_at.append(self.id)
        return original(self, dev)

    monkeypatch.setattr(Backup, "image", image)
    assert broken(repo) == {}
    assert len(looked_at) < 4 * length


@pytest.mark.parametrize("name", ["20261123T130000Z-full.partial", "20261123T130000Z-other", "lost+found", "x"])
def test_other_directories_are_no_backups(repo: Repository, name: str) -> None:
    commit(repo, ONE)
    (repo.path / UUID / name).mkdir()
    assert (repo.catalogue(UUID).history.backups, broken(repo)) == ((ONE,), {})


def test_directory_that_is_a_link_is_no_backup(repo: Repository) -> None:
    """It could lead to another repository's."""
    commit(repo, ONE).rename(repo.path / "elsewhere")
    (repo.path / UUID / ONE.id).symlink_to(repo.path / "elsewhere")
    assert repo.catalogue(UUID).history.backups == ()


def test_newest_backup_is_found_unless_told_otherwise(repo: Repository) -> None:
    commit(repo, ONE)
    commit(repo, TWO)
    catalogue = repo.catalogue(UUID)
    assert catalogue.find() == TWO
    assert catalogue.find(ONE.id) == ONE
    assert catalogue.find(at=ONE.time) == ONE
    assert catalogue.find(at=TWO.time) == TWO


def test_unknown_backup_is_an_error(repo: Repository) -> None:
    commit(repo, ONE)
    catalogue = repo.catalogue(UUID)
    with pytest.raises(ChainError, match="No backup 'x'"):
        catalogue.find("x")
    with pytest.raises(ChainError, match="No backup of this domain was made at"):
        catalogue.find(at=backup(0).time)
    with pytest.raises(ChainError, match="No backup of this domain; "):
        repo.catalogue(OTHER).find()


def test_older_backup_is_never_given_out_for_one_that_cannot_be_read(repo: Repository) -> None:
    commit(repo, ONE)
    (commit(repo, TWO) / "manifest.json").write_text("{")
    catalogue = repo.catalogue(UUID)
    with pytest.raises(ChainError, match=rf"{TWO.id}.*is broken.*{ONE.id}"):
        catalogue.find()
    with pytest.raises(ChainError, match="broken"):
        catalogue.find(TWO.id)
    assert catalogue.find(ONE.id) == ONE
    assert catalogue.find(at=ONE.time) == ONE


def test_broken_backup_is_told_with_each_word_once(repo: Repository) -> None:
    commit(repo, ONE)
    (commit(repo, TWO) / "manifest.json").write_text("{}")
    (broken,) = repo.catalogue(UUID).unreadable
    assert broken.sentence.count(TWO.id) == 1
    assert broken.sentence.startswith(f"Backup {TWO.id} is broken: ")


def test_time_before_all_backups_is_told_in_the_zone_it_was_given_in(repo: Repository) -> None:
    commit(repo, ONE)
    at = datetime(2026, 11, 23, 9, 0, tzinfo=timezone(timedelta(hours=1)))
    with pytest.raises(ChainError) as caught:
        repo.catalogue(UUID).find(at=at)
    assert str(caught.value) == (
        f"No backup of this domain was made at 2026-11-23 09:00:00+01:00 or before; the oldest, {ONE.id}, is of"
        " 2026-11-23 14:00:00+01:00."
    )


def test_newest_of_several_that_cannot_be_read_is_named(repo: Repository) -> None:
    commit(repo, ONE)
    three = incremental(3, TWO)
    for one in (TWO, three):
        (commit(repo, one) / "manifest.json").write_text("{")
    with pytest.raises(ChainError, match=rf"Backup {three.id}, the newest .*is broken.*one before it is {ONE.id}"):
        repo.catalogue(UUID).find()
    with pytest.raises(ChainError, match=rf"Backup {TWO.id}, the newest"):
        repo.catalogue(UUID).find(at=TWO.time)


def test_clock_that_stepped_back_changes_no_order(repo: Repository) -> None:
    """What was made later by a clock that shows an earlier time is still the later one."""
    late = backup(1, id="20261201T120000Z-full", time=NOON + timedelta(days=8))
    early = incremental(2, late)
    early = replace(early, id="20261101T120000Z-incremental", time=NOON - timedelta(days=22))
    for one in (late, early):
        commit(repo, one)
    catalogue = repo.catalogue(UUID)
    assert [one.id for one in catalogue.history.backups] == [late.id, early.id]
    assert catalogue.broken == ()
    assert catalogue.find().id == early.id
    assert [link.backup.id for link in catalogue.history.links(early.id, "vda")] == [early.id, late.id]
    assert catalogue.history.next_sequence == 3
    # The times are those that were recorded: nobody can tell which of them are right.
    assert catalogue.find(at=early.time).id == early.id
    assert catalogue.find(at=late.time).id == early.id
