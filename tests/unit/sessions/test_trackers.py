"""A tracker goes on from its newest checkpoint, keeps a few, and is read as it was written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.builders import SIZE_BYTES, TRACKER, UUID, session_checkpoint
from vbackup.errors import StorageError, UnknownCheckpointError
from vbackup.fields import Fields
from vbackup.model import Level
from vbackup.sessions import trackers
from vbackup.sessions.trackers import KEPT, Tracker


def with_checkpoints(*levels: Level) -> Tracker:
    made = Tracker(TRACKER, "web", UUID)
    for number, level in enumerate(levels, start=1):
        made = made.with_committed(session_checkpoint(number, "vda", level=level))
    return made


def fields(document: object) -> Fields:
    return Fields(json.loads(json.dumps(document)), "the tracker", StorageError)


def test_what_is_written_is_read() -> None:
    made = with_checkpoints(Level.FULL, Level.INCREMENTAL)
    assert trackers.read(fields(made.document())) == made


def test_base_is_the_newest_checkpoint() -> None:
    assert Tracker(TRACKER, "web", UUID).base is None
    made = with_checkpoints(Level.FULL, Level.INCREMENTAL)
    assert made.base is made.checkpoints[-1]
    assert made.last_sequence == 2


def test_last_full_stays_beside_the_newest() -> None:
    made = with_checkpoints(Level.FULL, *[Level.INCREMENTAL] * 5)
    assert [one.sequence for one in made.checkpoints] == [1, 4, 5, 6]
    assert len(made.checkpoints) == KEPT + 1
    made = with_checkpoints(Level.FULL, Level.INCREMENTAL, Level.FULL, *[Level.INCREMENTAL] * 4)
    assert [one.sequence for one in made.checkpoints] == [3, 5, 6, 7]


def test_session_that_was_committed_is_found_by_its_checkpoint() -> None:
    made = with_checkpoints(Level.FULL)
    assert made.committed_by(made.checkpoints[0].session) is made.checkpoints[0]
    assert made.committed_by("20261123T120009Z-000009") is None


def test_sizes_are_those_of_all_checkpoints() -> None:
    first, second = session_checkpoint(1, "vda", "vdb"), session_checkpoint(2, "vda")
    grown = replace(second, disks={"vda": replace(second.disks["vda"], size_bytes=2 * SIZE_BYTES)})
    made = Tracker(TRACKER, "web", UUID, (first, grown))
    assert made.sizes == {"vda": {SIZE_BYTES, 2 * SIZE_BYTES}, "vdb": {SIZE_BYTES}}
    assert made.without([first.id]).sizes == {"vda": {2 * SIZE_BYTES}}


def test_checkpoint_that_it_does_not_have_is_named_with_those_that_it_has() -> None:
    made = with_checkpoints(Level.FULL)
    with pytest.raises(UnknownCheckpointError, match=f"it has {made.checkpoints[0].id}") as raised:
        made.checkpoint("20200101T000000Z-full")
    assert (raised.value.status, raised.value.retry) == (6, "full")
    with pytest.raises(UnknownCheckpointError, match="it has none"):
        Tracker(TRACKER, "web", UUID).checkpoint("20200101T000000Z-full")


def test_sequence_of_a_deleted_checkpoint_does_not_come_again() -> None:
    made = with_checkpoints(Level.FULL, Level.INCREMENTAL)
    left = made.without([made.checkpoints[-1].id])
    assert left.base is made.checkpoints[0]
    assert left.last_sequence == 2
    with pytest.raises(UnknownCheckpointError):
        left.without([made.checkpoints[-1].id])


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("schema", "vbackup.tracker/2"),
        ("name", "../x"),
        ("domain", {"name": "web", "uuid": ".."}),
        ("checkpoints", [{}]),
        ("last_sequence", "1"),
    ],
)
def test_what_vbackup_does_not_write_is_refused(member: str, value: Any) -> None:
    with pytest.raises(StorageError):
        trackers.read(fields({**with_checkpoints(Level.FULL).document(), member: value}))
