"""End marks are added, set again or left alone in the transaction of a backup."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit import builders
from tests.unit.builders import REPOSITORY, TOKEN, bitmap, end_mark, layer
from tests.unit.engine.plans import SECOND, make, whole
from vbackup import names
from vbackup.engine import endmark, plan
from vbackup.model import BlockDriver, DiskNode, Level

CHECKPOINT = names.Naming(REPOSITORY).bitmap(SECOND.id, "vda", TOKEN)
MARK = names.Naming(REPOSITORY).end_mark("vda", builders.SIZE_BYTES)
ADD = ("block-dirty-bitmap-add", MARK)
MERGE = ("block-dirty-bitmap-merge", MARK)
ANEW = [("block-dirty-bitmap-disable", MARK), ("block-dirty-bitmap-clear", MARK), MERGE]
REMOVE = ("block-dirty-bitmap-remove", CHECKPOINT)


def about_marks(made: plan.BackupPlan) -> list[tuple[str, str]]:
    """What is done to end marks and to the bitmaps that they distrust."""
    named = [
        (action["type"], action["data"].get("name", action["data"].get("target", ""))) for action in made.transaction()
    ]
    return [one for one in named if names.parse_end_mark(one[1]) or one[0] == "block-dirty-bitmap-remove"]


def test_mark_is_merged_from_a_scratch_node_of_the_disks_size() -> None:
    made = make([(builders.node(layer(node_name="libvirt-2-format")), whole())], Level.FULL)
    scratch = f"vbackup-{REPOSITORY}-end.0"
    assert made.scratch_sizes == {scratch: builders.SIZE_BYTES}
    assert made.transaction()[:2] == [
        {
            "type": "block-dirty-bitmap-add",
            "data": {
                "node": "libvirt-2-format",
                "name": MARK,
                "granularity": 65536,
                "persistent": True,
                "disabled": True,
            },
        },
        {
            "type": "block-dirty-bitmap-merge",
            "data": {
                "node": "libvirt-2-format",
                "target": MARK,
                "bitmaps": [{"node": scratch, "name": f"vbackup-{REPOSITORY}-end"}],
            },
        },
    ]


@pytest.mark.parametrize(
    ("there", "done"),
    [
        ({}, []),
        ({"dirty_bytes": 2 * 65536}, []),
        (None, [ADD, MERGE]),
        ({"inconsistent": True}, [ADD, MERGE]),  # checkpoint.remove_uncommitted has removed it
        ({"dirty_bytes": 0}, [REMOVE, *ANEW]),
        ({"recording": True}, [REMOVE, *ANEW]),
        ({"busy": True}, []),
    ],
)
def test_mark_is_made_where_none_vouches(there: dict[str, Any] | None, done: list[tuple[str, str]]) -> None:
    """A new one must vouch for no base that the old one distrusts, whether this backup succeeds or not."""
    marks = [] if there is None else [end_mark(**there)]
    node = builders.node(layer(bitmap(CHECKPOINT), *marks))
    assert about_marks(make([(node, whole())])) == done


def test_base_that_the_size_distrusts_goes_where_no_mark_tells() -> None:
    """The disk may be as large again before the next backup, and this one may fail."""
    size_bytes = builders.SIZE_BYTES // 2
    node = builders.node(layer(bitmap(CHECKPOINT), virtual_size_bytes=size_bytes))
    name = names.Naming(REPOSITORY).end_mark("vda", size_bytes)
    assert about_marks(make([(node, whole())])) == [
        REMOVE,
        ("block-dirty-bitmap-add", name),
        ("block-dirty-bitmap-merge", name),
    ]


def test_empty_mark_stays_while_what_it_distrusts_is_busy() -> None:
    node = builders.node(layer(bitmap(CHECKPOINT, busy=True), end_mark(dirty_bytes=0)))
    assert about_marks(make([(node, whole())])) == []


def test_other_repositories_checkpoints_are_not_removed() -> None:
    foreign = names.Naming(builders.FOREIGN).bitmap(SECOND.id, "vda", TOKEN)
    node = builders.node(layer(bitmap(foreign), end_mark(dirty_bytes=0)))
    assert about_marks(make([(node, whole())])) == ANEW


def test_copy_and_disks_without_checkpoints_need_no_mark() -> None:
    assert about_marks(make([(builders.node(layer()), whole(Level.COPY))], Level.COPY)) == []
    raw = DiskNode(builders.disk(), (layer(driver=BlockDriver.RAW),), lasting=False)
    assert about_marks(make([(raw, whole())], Level.FULL)) == []
    assert about_marks(make([(builders.node(layer(virtual_size_bytes=0)), whole())], Level.FULL)) == []


def test_mark_of_a_raw_disk_is_not_stored() -> None:
    made = make([(builders.node(layer(driver=BlockDriver.RAW)), whole())], Level.FULL)
    assert made.transaction()[0]["data"]["persistent"] is False


@pytest.mark.parametrize(
    ("changes", "flaw", "vouches"),
    [
        ({}, None, True),
        ({"dirty_bytes": 0}, "shrunk and grown again", False),
        ({"busy": True}, "busy", False),
        ({"recording": True}, "was enabled", False),
        ({"inconsistent": True}, None, False),
    ],
    ids=str,
)
def test_only_a_whole_mark_vouches(changes: dict[str, Any], flaw: str | None, vouches: bool) -> None:
    """An inconsistent mark distrusts no base, but proves nothing."""
    mark = end_mark(**changes)
    said = endmark.flaw(mark)
    assert said is None if flaw is None else flaw in str(said)
    assert endmark.vouches(mark) == vouches


def test_missing_mark_does_not_vouch() -> None:
    assert not endmark.vouches(None)
