"""A chain is followed down to its full backup; a broken chain is refused, and the message names the backup."""

from __future__ import annotations

import pytest

from tests.unit import builders
from tests.unit.builders import REPOSITORY, TOKEN, backup, backup_id, copy, image, incremental
from vbackup.errors import ChainError
from vbackup.layers import ChainState
from vbackup.model import Level
from vbackup.names import EndMark, Naming
from vbackup.repository.history import History, RestoredDisk

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)


def bases(history: History, dev: str) -> set[str]:
    return {one.checkpoint for one in history.base_bitmaps(dev)}


def test_full_inside_a_chain_is_the_base_of_what_follows() -> None:
    """auto took a full of vdb only: its differential starts from there, vda's from the first."""
    both = backup(1, image("vda"), image("vdb"))
    mixed = backup(
        2, image("vda", level=Level.INCREMENTAL, base=both.id), image("vdb", level=Level.FULL), level=Level.INCREMENTAL
    )
    history = History([both, mixed])
    assert history.last_full("vda") == both
    assert history.last_full("vdb") == mixed
    assert bases(history, "vda") == {both.id, mixed.id}
    assert bases(history, "vdb") == {mixed.id}


def test_full_that_was_merged_is_as_old_as_the_one_it_began_with() -> None:
    full, later = backup(5), incremental(6, backup(5))
    assert History([ONE, TWO, full, later]).copied_whole("vda") == (full.id, full.time)
    assert History([ONE, TWO]).copied_whole("vdb") is None
    assert History([copy(3)]).copied_whole("vda") is None
    merged = backup(7, image("vda", full=ONE.id, bitmap=None), id=backup_id(7, Level.INCREMENTAL))
    assert History([merged, incremental(8, merged)]).copied_whole("vda") == (ONE.id, ONE.time)
    # One of a version that recorded only whose checkpoint it has.
    older = backup(7, image("vda", checkpoint=ONE.id), id=backup_id(7, Level.INCREMENTAL))
    assert History([older]).copied_whole("vda") == (ONE.id, ONE.time)


def ids(history: History, backup_id: str, dev: str = "vda") -> list[str]:
    return [link.backup.id for link in history.links(backup_id, dev)]


def test_links_lead_down_to_the_full() -> None:
    assert ids(History([THREE, ONE, TWO]), THREE.id) == [THREE.id, TWO.id, ONE.id]


def test_full_and_copy_stand_alone() -> None:
    history = History([ONE, TWO, copy(3)])
    assert ids(history, ONE.id) == [ONE.id]
    assert ids(history, copy(3).id) == [copy(3).id]


def test_missing_link_is_named_with_who_needs_it() -> None:
    with pytest.raises(ChainError, match=rf"Disk vda: backup {ONE.id} is missing.*backup {TWO.id} depends on it"):
        History([TWO, THREE]).links(THREE.id, "vda")


def test_link_without_the_disk_is_named() -> None:
    with pytest.raises(ChainError, match=rf"Disk vdb: backup {ONE.id} has no image of this disk"):
        History([ONE, incremental(2, ONE, "vdb")]).links(backup_id(2, Level.INCREMENTAL), "vdb")


def test_unusable_link_is_named() -> None:
    with pytest.raises(ChainError, match=rf"Disk vda: the image of backup {ONE.id} is missing or has another size"):
        History([ONE, TWO], [(ONE.id, "vda")]).links(TWO.id, "vda")


def test_image_that_stands_on_itself_is_refused() -> None:
    itself = backup(1, image(base=backup_id(1)))
    with pytest.raises(ChainError, match="claims to depend on a later one"):
        History([itself]).links(itself.id, "vda")


def test_circle_is_refused() -> None:
    one = backup(1, image(base=backup_id(2)))
    two = backup(2, image(base=backup_id(1)))
    with pytest.raises(ChainError, match="claims to depend on a later one"):
        History([one, two]).links(two.id, "vda")


def test_image_that_stands_on_a_later_one_is_refused() -> None:
    one = backup(1, image(base=backup_id(2)))
    with pytest.raises(ChainError, match=rf"backup {one.id} claims to depend on a later one, {backup_id(2)}"):
        History([one, backup(2)]).links(one.id, "vda")


def test_image_that_stands_on_a_larger_one_is_refused() -> None:
    """A disk that was made smaller gets a full; restored over a larger image it would keep the size of that."""
    smaller = backup(2, image(level=Level.INCREMENTAL, base=ONE.id, virtual_size_bytes=builders.SIZE_BYTES // 2))
    with pytest.raises(ChainError, match=rf"backup {smaller.id} claims to depend on a larger one, {ONE.id}"):
        History([ONE, smaller]).links(smaller.id, "vda")


def test_two_backups_of_one_sequence_number_do_not_stand_on_each_other() -> None:
    two = incremental(2, ONE)
    twin = builders.backup(2, image(base=ONE.id), id=backup_id(5), sequence=ONE.sequence)
    with pytest.raises(ChainError):
        History([ONE, two, twin]).links(twin.id, "vda")


def test_unknown_backup_is_an_error() -> None:
    with pytest.raises(ChainError, match=r"No backup 'x' of this domain"):
        History([ONE]).get("x")
    with pytest.raises(ChainError, match="missing"):
        History([ONE]).links("x", "vda")


def test_sequence_beats_the_clock() -> None:
    """The clock stepped back between the first and the second backup."""
    late = builders.backup(9, id=backup_id(9), sequence=1)
    early = builders.backup(
        5, image(level=Level.INCREMENTAL, base=late.id), id=backup_id(5, Level.INCREMENTAL), sequence=2
    )
    history = History([late, early])
    assert history.backups == (late, early)
    assert history.newest("vda") == early
    assert ids(history, early.id) == [early.id, late.id]


def test_next_sequence_follows_the_highest() -> None:
    assert History([]).next_sequence == 1
    assert History([builders.backup(1, sequence=41), ONE]).next_sequence == 42


def test_bases_are_the_newest_and_the_last_full() -> None:
    assert bases(History([ONE, TWO, THREE]), "vda") == {ONE.id, THREE.id}
    assert bases(History([ONE, TWO, THREE, copy(4)]), "vda") == {ONE.id, THREE.id}
    assert bases(History([ONE]), "vda") == {ONE.id}
    assert bases(History([]), "vda") == set()
    assert bases(History([ONE]), "vdb") == set()


def test_disk_that_was_left_out_lately_keeps_its_bases() -> None:
    both = backup(1, image("vda"), image("vdb"))
    only = incremental(2, both, "vda")
    assert bases(History([both, only]), "vdb") == {both.id}


def test_bitmaps_of_restores_since_the_newest_backup_are_bases() -> None:
    def restored(number: int, *, after: int) -> RestoredDisk:
        name = Naming(REPOSITORY).bitmap(ONE.id, "vda", f"{number:012x}")
        return RestoredDisk("vda", ONE.id, name, 1 << 20, after, ChainState(()))

    old, new = restored(1, after=1), restored(2, after=2)
    history = History([ONE, TWO], restored=[old, new])
    assert history.restored_since("vda") == [new]
    assert history.restored_since("vdb") == []
    assert {one.token for one in history.base_bitmaps("vda")} == {TOKEN, f"{2:012x}"}
    assert EndMark(REPOSITORY, "vda", 1 << 20) in history.end_marks("vda")
    assert history.restored_bitmaps("vda") == {old.bitmap, new.bitmap}
    assert history.with_committed(THREE).restored_since("vda") == []
    assert history.without([ONE.id]).restored_since("vda") == []


def test_any_checkpoint_can_be_named_as_a_start_and_only_the_newest_is_the_latest() -> None:
    history = History([ONE, TWO, copy(3)])
    first, newest = history.start_at(ONE.id, "vda"), history.start_at(TWO.id, "vda")
    assert first is not None
    assert newest is not None
    assert (first.backup, first.is_latest) == (ONE, False)
    assert (newest.backup, newest.is_latest) == (TWO, True)
    assert history.start_at(copy(3).id, "vda") is None
    assert history.start_at(ONE.id, "vdb") is None
