"""Damage is told with what it affects, shortly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recorded import BLOCK, Recorded, flip
from tests.unit.builders import UUID
from vbackup.repository.block_list import HEADER
from vbackup.repository.findings import Findings
from vbackup.repository.history import Link
from vbackup.repository.image_check import Finding
from vbackup.repository.verification import MAX_DAMAGE, Damage, Kind


@pytest.fixture
def findings(recorded: Recorded) -> Iterator[Findings]:
    made = Findings(recorded.repository, recorded.repository.catalogue(UUID))
    yield made
    made.close()


def first(recorded: Recorded) -> Link:
    return recorded.repository.catalogue(UUID).history.links(recorded.backups[0].id, "vda")[0]


def test_backups_that_hold_the_block_are_not_affected(recorded: Recorded, findings: Findings) -> None:
    ids = [one.id for one in recorded.backups]
    found = findings.add(first(recorded), Finding(Kind.CONTENT, "It is damaged.", {0: 0b110}))
    assert (found.affected, found.unaffected) == (tuple(ids[:2]), tuple(ids[2:]))
    # The second replaced one of the two blocks.
    file = f"{ids[0]}/vda.qcow2"
    assert findings.of(ids[0]) == [Damage("vda", file, BLOCK, 2 * BLOCK, "content")]
    assert findings.of(ids[1]) == [Damage("vda", file, 2 * BLOCK, BLOCK, "content")]
    assert findings.of(ids[2]) == []
    assert findings.affected == set(ids[:2])
    assert found.sentence == (
        f"It is damaged. Damaged bytes of the disk: {BLOCK} to {3 * BLOCK - 1}. Affected: {ids[0]}, {ids[1]}. Not"
        f" affected: {ids[2]}, {ids[3]}."
    )


@pytest.mark.parametrize("kind", [Kind.STRUCTURE, Kind.LIST, Kind.IMAGE])
def test_image_that_cannot_be_trusted_affects_all_that_depend_on_it(
    recorded: Recorded, findings: Findings, kind: Kind
) -> None:
    found = findings.add(first(recorded), Finding(kind, "It is damaged."))
    assert found.affected == tuple(one.id for one in recorded.backups)
    assert found.unaffected == ()
    assert "Not affected" not in found.sentence


def test_list_that_cannot_be_read_hides_no_damage(recorded: Recorded, findings: Findings) -> None:
    recorded.path(recorded.backups[1], "vda.blocks").unlink()
    found = findings.add(first(recorded), Finding(Kind.CONTENT, "It is damaged.", {0: 0b10}))
    assert found.affected == tuple(one.id for one in recorded.backups)


def test_list_with_a_damaged_segment_hides_no_damage_and_ends_nothing(recorded: Recorded, findings: Findings) -> None:
    flip(recorded.path(recorded.backups[1], "vda.blocks"), HEADER.size + 10)  # in the mask of held blocks
    found = findings.add(first(recorded), Finding(Kind.CONTENT, "It is damaged.", {0: 0b10}))
    assert found.affected[:2] == tuple(one.id for one in recorded.backups[:2])


def test_images_without_lists_are_looked_at_themselves(recorded_old: Recorded) -> None:
    findings = Findings(recorded_old.repository, recorded_old.repository.catalogue(UUID))
    found = findings.add(first(recorded_old), Finding(Kind.CONTENT, "It is damaged.", {0: 0b10}))
    findings.close()
    assert found.affected == (recorded_old.backups[0].id,)


def test_much_damage_is_counted_not_listed(recorded: Recorded, findings: Findings) -> None:
    every_other = int("01" * 4096, 2)
    found = findings.add(first(recorded), Finding(Kind.CONTENT, "It is damaged.", {0: every_other}))
    assert len(found.ranges) == MAX_DAMAGE
    assert f"and {MAX_DAMAGE - 6} more" in found.sentence
    assert len(found.sentence) < 1000


def test_backups_share_the_ranges_of_much_damage(recorded: Recorded, findings: Findings) -> None:
    found = findings.add(first(recorded), Finding(Kind.CONTENT, "It is damaged.", {0: int("01" * 4096, 2)}))
    assert len(found.affected) == 4
    ranges = [one for backup_id in found.affected for one in findings.of(backup_id)]
    assert len(ranges) > 3 * MAX_DAMAGE
    assert len({id(one) for one in ranges}) < MAX_DAMAGE + 100


def test_no_more_ranges_are_remembered_than_are_kept(recorded: Recorded, findings: Findings) -> None:
    history = recorded.repository.catalogue(UUID).history
    ids = [one.id for one in recorded.backups]
    much = Finding(Kind.CONTENT, "It is damaged.", {0: int("01" * 4096, 2)})
    for one in ids[:2]:
        findings.add(history.links(one, "vda")[0], much)
    whole = findings.add(history.links(ids[2], "vda")[0], Finding(Kind.STRUCTURE, "It is damaged."))
    assert [len(findings.of(one)) for one in ids] == [MAX_DAMAGE] * 4
    assert whole.affected == tuple(ids[2:])


def test_further_file_is_of_one_backup_only(recorded: Recorded, findings: Findings) -> None:
    found = findings.add_file(recorded.backups[1], "nvram", "It is damaged.")
    assert found.affected == (recorded.backups[1].id,)
    assert found.path == recorded.path(recorded.backups[1], "nvram")
    assert findings.of(recorded.backups[1].id) == [Damage(None, f"{recorded.backups[1].id}/nvram", 0, 0, "file")]
