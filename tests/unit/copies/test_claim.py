"""Who copies or removes points of a domain has them alone, and a dead one does not block its own machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fake_store import FakeStore
from tests.unit.builders import UUID
from vbackup.copies.claim import claimed
from vbackup.copies.target import Target
from vbackup.errors import BusyError, StorageError
from vbackup.stores.store import Deletion


@pytest.fixture
def target() -> Target:
    return Target(FakeStore(), "0123456789ab", "0123456789ab")


def machine(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir(exist_ok=True)
    return path


def keys(target: Target) -> list[str]:
    return [each.key for each in target.store.list("")]


def test_claim_is_there_during_the_block_only(target: Target, tmp_path: Path) -> None:
    here = machine(tmp_path, "here")
    with claimed(target, UUID, here) as listed:
        [key] = keys(target)
        assert key.startswith(f"{UUID}/claim-")
        assert [each.key for each in listed.claims] == [key]
    assert keys(target) == []
    assert list(here.iterdir()) == []


def test_second_one_gives_way_and_leaves_nothing(target: Target, tmp_path: Path) -> None:
    with claimed(target, UUID, machine(tmp_path, "one")):
        before = keys(target)
        with pytest.raises(BusyError, match="take-over"), claimed(target, UUID, machine(tmp_path, "two")):
            pass
        assert keys(target) == before
    with claimed(target, UUID, machine(tmp_path, "two")):
        pass


def died(target: Target, here: Path) -> None:
    """A run that is killed leaves claim and note."""
    with claimed(target, UUID, here):
        note = (here / "claim").read_text()
        [key] = keys(target)
    target.put_small(key, b"")
    (here / "claim").write_text(note)


def test_killed_run_does_not_block_its_own_machine(target: Target, tmp_path: Path) -> None:
    here, there = machine(tmp_path, "here"), machine(tmp_path, "there")
    died(target, here)
    with pytest.raises(BusyError), claimed(target, UUID, there):
        pass
    with claimed(target, UUID, here):
        assert len(keys(target)) == 1
    assert keys(target) == []


def test_note_in_a_copy_of_the_directory_does_not_count(target: Target, tmp_path: Path) -> None:
    died(target, machine(tmp_path, "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    with pytest.raises(BusyError), claimed(target, UUID, tmp_path / "copy"):
        pass


def test_dead_one_of_another_machine_is_taken_over(target: Target, tmp_path: Path) -> None:
    died(target, machine(tmp_path, "here"))
    with claimed(target, UUID, machine(tmp_path, "there"), take_over=True):
        assert len(keys(target)) == 1
    with claimed(target, UUID, machine(tmp_path, "here")):
        pass
    assert keys(target) == []


def test_where_nothing_can_be_deleted_claims_end_all_the_same(target: Target, tmp_path: Path) -> None:
    assert isinstance(target.store, FakeStore)
    target.store.days = 30
    assert target.store.delete("x") is Deletion.KEPT
    for name in ("one", "two", "one"):
        with claimed(target, UUID, machine(tmp_path, name)) as listed:
            assert len(listed.claims) == 1
    assert len(keys(target)) == 6


def test_claim_that_has_ended_is_not_used_again(target: Target, tmp_path: Path) -> None:
    """A run that is killed between the end of its claim and the removal of its note must not hide the next one."""
    assert isinstance(target.store, FakeStore)
    target.store.days = 30
    here = machine(tmp_path, "here")
    with claimed(target, UUID, here):
        note = (here / "claim").read_text()
    (here / "claim").write_text(note)
    with claimed(target, UUID, here) as listed:
        assert len(listed.claims) == 1
        with pytest.raises(BusyError), claimed(target, UUID, machine(tmp_path, "there")):
            pass


def test_end_of_the_block_is_no_second_error(target: Target, tmp_path: Path) -> None:
    assert isinstance(target.store, FakeStore)

    def dead(what: str, key: str) -> None:
        raise StorageError("the line is dead")

    with claimed(target, UUID, machine(tmp_path, "here")):
        target.store.before = dead
    assert (tmp_path / "here" / "claim").exists()
    target.store.before = lambda what, key: None
    with claimed(target, UUID, machine(tmp_path, "here")):
        assert len(keys(target)) == 1


@pytest.mark.parametrize("text", ["", "no token", "../../../etc/passwd"])
def test_damaged_note_is_no_token(target: Target, tmp_path: Path, text: str) -> None:
    here = machine(tmp_path, "here")
    (here / "claim").write_text(text)
    with claimed(target, UUID, here):
        assert len(keys(target)) == 1
