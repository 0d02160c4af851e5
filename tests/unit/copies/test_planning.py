"""Which points go to a target, and in which form: decided by what is there, whatever merges have done at home."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit.builders import NOON, backup, image
from vbackup import names
from vbackup.copies.planning import Form, Plan, plan
from vbackup.copies.point import Point, origin_of
from vbackup.errors import ChainError
from vbackup.model import Backup, BlocksRecord, Level
from vbackup.repository.history import History


def point_id(number: int) -> str:
    return names.backup_id(NOON + timedelta(hours=number), Level.INCREMENTAL)


def made(number: int, base: int | None, content: str = "1") -> Backup:
    blocks = BlocksRecord(f"blake3:{number}-{content}", "blake3:s", data_blocks=1, zero_blocks=0)
    level = Level.FULL if base is None else Level.INCREMENTAL
    disk = replace(image(level=level, base=None if base is None else point_id(base)), blocks=blocks)
    return backup(number, disk, level=level, id=point_id(number), time=NOON + timedelta(hours=number))


FIVE = [made(1, None), made(2, 1), made(3, 2), made(4, 3), made(5, 4)]


def there(*backups: Backup) -> dict[str, Point]:
    return {one.id: Point(one, {}, {disk.dev: origin_of(disk) for disk in one.disks}) for one in backups}


def forms(found: Plan) -> list[tuple[int, Form, int | None]]:
    number = {point_id(each): each for each in range(1, 10)}
    return [
        (number[copy.backup.id], disk.form, None if disk.base is None else number[disk.base])
        for copy in found.copies
        for disk in copy.disks
    ]


def decided(backups: list[Backup], points: Mapping[str, Point], **options: object) -> Plan:
    return plan(History(backups), points, **options)  # type: ignore[arg-type]


def test_everything_goes_as_it_is_to_an_empty_target() -> None:
    assert forms(decided(FIVE, {})) == [(1, Form.AS_IT_IS, None), *((n, Form.AS_IT_IS, n - 1) for n in range(2, 6))]


def test_only_what_is_newer_than_the_newest_there() -> None:
    found = decided(FIVE, there(FIVE[3], FIVE[0]))  # 4 there is not complete
    assert forms(found) == [(5, Form.JOINED, 1)]
    assert found.there == (point_id(1), point_id(4))
    assert found.passed == (point_id(2), point_id(3))


def test_nearest_complete_chain_there_is_the_base() -> None:
    # 4 is there, but what it depends on was lost: nothing can be based on it.
    found = decided(FIVE, there(FIVE[0], FIVE[1], FIVE[3]))
    assert forms(found) == [(5, Form.JOINED, 2)]
    assert [link.backup.id for link in found.copies[0].disks[0].layers] == [point_id(5), point_id(4), point_id(3)]
    assert found.copies[0].directories == {point_id(5), point_id(4), point_id(3)}


def test_without_any_of_the_chain_it_is_a_full() -> None:
    found = decided(FIVE, {}, since=NOON + timedelta(hours=5))
    assert forms(found) == [(5, Form.FULL, None)]
    assert found.copies[0].disks[0].size_bytes == 5 * FIVE[0].disks[0].file_size_bytes


def test_since_takes_what_is_not_there_whatever_is_newer() -> None:
    found = decided(FIVE, there(*FIVE[:2], FIVE[3]), since=NOON + timedelta(hours=2))
    assert forms(found) == [(3, Form.AS_IT_IS, 2), (5, Form.JOINED, 3)]
    assert found.passed == ()


def test_chains_there_get_no_longer_than_asked_for() -> None:
    assert forms(decided(FIVE, {}, full_every=2)) == [
        (1, Form.AS_IT_IS, None),
        (2, Form.AS_IT_IS, 1),
        (3, Form.FULL, None),
        (4, Form.AS_IT_IS, 3),
        (5, Form.FULL, None),
    ]
    assert forms(decided(FIVE, there(*FIVE[:3]), full_every=1)) == [(4, Form.FULL, None), (5, Form.FULL, None)]


def test_merged_backups_are_still_there() -> None:
    merged = [FIVE[0], replace(FIVE[3], disks=(replace(FIVE[3].disks[0], base=point_id(1)),)), FIVE[4], made(6, 5)]
    found = decided(merged, there(*FIVE))
    assert forms(found) == [(6, Form.AS_IT_IS, 5)]
    assert found.there == (point_id(1), point_id(4), point_id(5))


def test_nothing_is_based_on_what_cannot_be_read() -> None:
    found = decided(FIVE, there(*FIVE[:3]), unknown=frozenset({point_id(4)}))
    assert forms(found) == [(5, Form.JOINED, 3)]
    assert point_id(4) in found.there


def test_broken_ones_are_skipped_with_the_reason() -> None:
    found = decided([FIVE[0], FIVE[2], FIVE[3]], {})
    assert forms(found) == [(1, Form.AS_IT_IS, None)]
    assert found.skipped.keys() == {point_id(3), point_id(4)}
    assert "is missing" in found.skipped[point_id(3)]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (made(2, 1, "another"), "content of disk vda"),
        (replace(FIVE[1], time=NOON), "it is of"),
        (replace(FIVE[1], sequence=7), "number 7"),
        (replace(FIVE[1], files={"domain.xml": "sha256:other"}), "domain.xml"),
        (replace(FIVE[1], disks=(replace(FIVE[1].disks[0], virtual_size_bytes=1),)), "other disks"),
    ],
)
def test_another_backup_under_the_id_ends_it(other: Backup, words: str) -> None:
    with pytest.raises(ChainError, match=words):
        decided(FIVE, there(FIVE[0], other))


def test_another_algorithm_is_no_difference() -> None:
    blocks = BlocksRecord("sha256:2", "sha256:s", data_blocks=1, zero_blocks=0)
    other = replace(FIVE[1], disks=(replace(FIVE[1].disks[0], blocks=blocks),))
    assert decided(FIVE[:2], there(FIVE[0], other)).copies == ()
