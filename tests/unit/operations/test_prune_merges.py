"""What a prune tells of a consolidation: who gets whose data, how, and what further copies cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder, backup, commit, image, incremental
from vbackup.errors import NoSpaceError, StorageError
from vbackup.model import Level
from vbackup.operations import consolidation
from vbackup.operations.prune_merges import Consolidation, PlannedMerge
from vbackup.repository.merging import DiskMerge, Merge, Place, Plan, Way
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)
OTHER = backup(4, image(level=Level.INCREMENTAL, base=ONE.id), level=Level.INCREMENTAL)


def planned(directory: Path, *merges: tuple[str, Way, tuple[str, ...]], removed: tuple[str, ...] = ()) -> PlannedMerge:
    made = tuple(Merge(layers[0], (DiskMerge(dev, layers, None, way, 0),)) for dev, way, layers in merges)
    return PlannedMerge(Plan(UUID, removed, {}, made, 0), directory)


def test_heirs_are_told_for_each_backup_whose_data_they_get(tmp_path: Path) -> None:
    merge = planned(
        tmp_path,
        ("vda", Way.IN_PLACE, (THREE.id, TWO.id, ONE.id)),
        ("vda", Way.COPY, (OTHER.id, ONE.id)),
        removed=(TWO.id, ONE.id),
    )
    assert merge.heirs == {TWO.id: [THREE.id], ONE.id: [THREE.id, OTHER.id]}
    assert not merge.is_empty
    assert merge.sentences() == [
        f"Disk vda: {THREE.id} takes over what it needs from {ONE.id} on, in place.",
        f"Disk vda: {OTHER.id} takes over what it needs from {ONE.id} on, by a copy.",
    ]
    assert planned(tmp_path).is_empty


def test_only_further_copies_take_room(tmp_path: Path) -> None:
    (tmp_path / ONE.id).mkdir()
    (tmp_path / ONE.id / "vda.qcow2").write_bytes(b"x" * 65536)
    both = (THREE.id, ONE.id), (OTHER.id, ONE.id)
    copies = planned(tmp_path, *(("vda", Way.COPY, layers) for layers in both))
    assert copies.extra_bytes >= 65536
    assert planned(tmp_path, *(("vda", Way.REFLINK, layers) for layers in both)).extra_bytes == 0
    assert planned(tmp_path, ("vda", Way.COPY, both[0])).extra_bytes == 0
    assert (
        planned(tmp_path, ("vdb", Way.COPY, (THREE.id, "gone")), ("vdb", Way.COPY, (TWO.id, "gone"))).extra_bytes == 0
    )


def test_chains_are_measured_as_they_will_be(repo: Repository) -> None:
    """Of a chain of five, two are merged: with four images no longer than allowed, nothing more is done."""
    chain = [ONE]
    for number in range(2, 6):
        chain.append(incremental(number, chain[-1]))
    for one in chain:
        commit(repo, one)

    def plan(max_chain: int | None) -> PlannedMerge:
        consolidation = Consolidation(repo, Way.COPY, Recorder(), Stop(), max_chain)
        return consolidation.plan(repo.catalogue(UUID), [ONE.id, TWO.id])

    assert plan(None).shortened == plan(3).shortened == ()
    shorter = plan(2)
    assert shorter.shortened == ((chain[4].id, "vda"),)
    assert (
        shorter.sentences()[-1] == f"Disk vda: {chain[4].id} becomes a full, so that no chain has more than 2 images."
    )
    assert shorter.document()["shortened"] == [{"id": chain[4].id, "dev": "vda"}]
    (repo.directory(UUID, chain[4].id) / "vda.qcow2").unlink()
    assert plan(2).shortened == ()


@pytest.mark.parametrize(
    ("way", "free_bytes", "error", "message"),
    [
        (Way.IN_PLACE, 1 << 40, StorageError, "in place: that backup stays"),
        (Way.REFLINK, 1 << 40, StorageError, "no reflinks"),
        (Way.AUTO, 1000, NoSpaceError, "Nothing was changed"),
    ],
)
def test_chain_that_cannot_be_shortened_is_refused_while_all_backups_are_there(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, way: Way, free_bytes: int, error: type[Exception], message: str
) -> None:
    for one in (ONE, TWO, THREE):
        commit(repo, one)
    monkeypatch.setattr(consolidation, "place", lambda _directory: Place(False, True, free_bytes))
    consolidator = Consolidation(repo, way, Recorder(), Stop(), max_chain=2)
    with pytest.raises(error, match=message):
        consolidator.plan(repo.catalogue(UUID), [])
    assert Consolidation(repo, way, Recorder(), Stop(), max_chain=3).plan(repo.catalogue(UUID), []).is_empty


def test_room_that_the_merges_free_is_there_for_shorter_chains(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images, of which two are merged; what the merge takes for a while is there again after it."""
    chain = [ONE]
    for number in range(2, 6):
        chain.append(incremental(number, chain[-1]))
    for one in chain:
        commit(repo, one)
    sizes = [one.disks[0].file_size_bytes for one in chain]
    margin = 1024 * 1024
    merged = sum(sizes[:3])

    def plan(free_bytes: int) -> PlannedMerge:
        monkeypatch.setattr(consolidation, "place", lambda _directory: Place(False, True, free_bytes))
        return Consolidation(repo, Way.COPY, Recorder(), Stop(), 2).plan(repo.catalogue(UUID), [ONE.id, TWO.id])

    needed = max(merged + margin, sum(sizes) + 2 * margin)
    assert plan(needed).shortened == ((chain[4].id, "vda"),)
    with pytest.raises(NoSpaceError):
        plan(needed - 1)
