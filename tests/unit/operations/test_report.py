"""The backups of a repository as a report draws them, and the page."""

from __future__ import annotations

from dataclasses import replace
from datetime import timezone
from pathlib import Path

import pytest

from tests.unit import builders
from tests.unit.overview import overviews
from vbackup.errors import StorageError
from vbackup.model import ChangeRecord, Level
from vbackup.operations import report
from vbackup.overview.state import Overview
from vbackup.repository.repository import Repository


def _changed(data_bytes: int, zero_bytes: int) -> ChangeRecord:
    return ChangeRecord(data_bytes, zero_bytes, sampled_bytes=4096, compressed_bytes=2048)


def test_points_have_what_is_known_of_each_backup(repo: Repository) -> None:
    full = builders.backup(1, *(builders.image(dev, change=_changed(2**30, 0)) for dev in ("vda", "vdb")))
    disks = [
        builders.image(dev, level=Level.INCREMENTAL, base=full.id, change=_changed(2**20, 2**16))
        for dev in ("vda", "vdb")
    ]
    incremental = builders.backup(2, *disks, level=Level.INCREMENTAL)
    for one in (full, incremental):
        builders.commit(repo, one)
    [(uuid, known)] = report.points_in(repo).items()
    assert uuid == builders.UUID
    assert [(one.id, one.level, one.base, one.verdict) for one in known.points] == [
        (full.id, "full", None, "unverified"),
        (incremental.id, "incremental", full.id, "unverified"),
    ]
    # What a full copies has not changed since anything.
    assert [one.changed_bytes for one in known.points] == [None, 2 * (2**20 + 2**16)]
    assert known.points[1].size_bytes == incremental.size_bytes


def test_backup_without_a_record_of_changes_has_no_bar(repo: Repository) -> None:
    full = builders.backup(1)
    for one in (full, builders.incremental(2, full)):
        builders.commit(repo, one)
    assert [one.changed_bytes for one in report.points_in(repo)[builders.UUID].points] == [None, None]


def test_broken_backup_is_drawn_as_such(repo: Repository) -> None:
    full = builders.backup(1)
    incremental = builders.incremental(2, full)
    for one in (full, incremental):
        builders.commit(repo, one)
    (repo.directory(builders.UUID, full.id) / "vda.qcow2").unlink()
    assert [one.verdict for one in report.points_in(repo)[builders.UUID].points] == ["broken", "broken"]


def test_domain_that_is_a_link_is_left_out(repo: Repository) -> None:
    builders.commit(repo, builders.backup(1))
    directory = repo.path / builders.UUID
    directory.rename(repo.path / "elsewhere")
    directory.symlink_to("elsewhere")
    assert report.points_in(repo) == {}


def _overview(*places: Path) -> Overview:
    shown = [overviews.repository(place.name, path=str(place)) for place in places]
    return overviews.overview(
        overviews.domain(uuid=builders.UUID, repository=shown[-1].name if shown else ""), repositories=tuple(shown)
    )


def test_page_has_the_backups_of_the_repositories(repo: Repository, tmp_path: Path) -> None:
    full = builders.backup(1)
    builders.commit(repo, full)
    assert full.id in report.html(_overview(repo.path), zone=timezone.utc)
    assert full.id in report.html(_overview(tmp_path / "gone", repo.path), zone=timezone.utc)


def test_each_repository_has_its_own_backups_of_a_domain(repo: Repository, tmp_path: Path) -> None:
    """The newest repository's must not be drawn for all: what is gone there is still in the other one."""
    kept, newer = builders.backup(1), builders.backup(2)
    other = Repository.create(tmp_path / "other")
    builders.commit(repo, kept)
    builders.commit(other, newer)
    places = [overviews.repository(place.path.name, path=str(place.path)) for place in (repo, other)]
    for place, own, foreign in ((repo, kept, newer), (other, newer, kept)):
        one = overviews.domain(uuid=builders.UUID, repository=place.path.name)
        page = report.html(overviews.overview(one, repositories=tuple(places)), zone=timezone.utc)
        assert own.id in page
        assert foreign.id not in page


def test_repository_that_cannot_be_read_is_not_looked_at(repo: Repository) -> None:
    full = builders.backup(1)
    builders.commit(repo, full)
    fault = replace(overviews.unmounted(), path=str(repo.path))
    assert full.id not in report.html(replace(_overview(), repositories=(fault,)), zone=timezone.utc)


def test_report_is_replaced_in_one_step_and_is_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write(path, report.text(_overview(), zone=timezone.utc))
    assert path.read_text().startswith("OK: Everything is backed up: 1 domain, the oldest 6 h ago.")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match=r"Cannot write .*: Not a directory"):
        report.write(path / "x", "x")
