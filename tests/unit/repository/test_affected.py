"""A backup is affected by damage of an image if it shows the block, and no image in between holds it."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.builders import backup, copy, incremental
from vbackup.repository import affected
from vbackup.repository.history import History

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)
#: A second heir of the first, as a differential is.
OTHER = incremental(4, ONE)
ALONE = copy(5)
HISTORY = History([ONE, TWO, THREE, OTHER, ALONE])
HEIRS = affected.heirs(HISTORY, "vda")


def held(**blocks: dict[int, int]) -> Callable[[str, int], int]:
    ids = {"two": TWO.id, "three": THREE.id, "other": OTHER.id}
    by_id = {ids[name]: one for name, one in blocks.items()}
    return lambda backup_id, number: by_id.get(backup_id, {}).get(number, 0)


def test_heirs_are_those_whose_image_stands_on_another() -> None:
    assert {ONE.id: [TWO.id, OTHER.id], TWO.id: [THREE.id]} == HEIRS
    assert affected.heirs(HISTORY, "vdb") == {}


def test_dependents_are_all_above() -> None:
    assert affected.dependents(ONE.id, HEIRS) == {ONE.id, TWO.id, THREE.id, OTHER.id}
    assert affected.dependents(TWO.id, HEIRS) == {TWO.id, THREE.id}
    assert affected.dependents(ALONE.id, HEIRS) == {ALONE.id}


def test_block_that_an_image_in_between_holds_does_no_harm_above_it() -> None:
    found = affected.affected(ONE.id, {0: 0b11, 7: 0b100}, HEIRS, held=held(two={0: 0b10}, three={0: 0b01, 7: 0b100}))
    assert found == {
        ONE.id: {0: 0b11, 7: 0b100},
        TWO.id: {0: 0b01, 7: 0b100},
        OTHER.id: {0: 0b11, 7: 0b100},
    }


def test_only_what_is_shown_counts() -> None:
    assert affected.affected(TWO.id, {3: 1}, HEIRS, held=held(three={3: 1})) == {TWO.id: {3: 1}}
