"""Dirty bitmaps: what they record, and what QEMU refuses to do with them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.contract.conftest import MIB, SIZE_BYTES, Bench, action, add_bitmap, backup

KIB = 1024


@pytest.fixture
def disk(bench: Bench) -> str:
    return bench.node("disk")


@pytest.fixture
def raw(bench: Bench) -> str:
    return bench.node("raw", "raw")


def test_new_bitmap_records_and_is_empty(bench: Bench, disk: str) -> None:
    bench.transaction(add_bitmap(disk, "b", granularity=64 * KIB, persistent=True))
    bitmap = bench.bitmap(disk, "b")
    assert bitmap is not None
    assert bitmap["recording"] is True
    assert bitmap["persistent"] is True
    assert bitmap["busy"] is False
    assert bitmap["granularity"] == 64 * KIB
    assert bitmap["count"] == 0
    assert not bitmap.get("inconsistent", False)


def test_bitmap_is_not_persistent_unless_asked_for(bench: Bench, disk: str) -> None:
    bench.transaction(add_bitmap(disk, "b"))
    bitmap = bench.bitmap(disk, "b")
    assert bitmap is not None
    assert bitmap["persistent"] is False


def test_write_dirties_the_granules_it_touches(bench: Bench, disk: str) -> None:
    bench.transaction(add_bitmap(disk, "b", granularity=64 * KIB))
    bench.write(disk, 60 * KIB, 8 * KIB)  # over the edge of two
    bitmap = bench.bitmap(disk, "b")
    assert bitmap is not None
    assert bitmap["count"] == 2 * 64 * KIB


@pytest.mark.parametrize("granularity", [512, 4 * KIB, MIB])
def test_granularity_is_what_was_asked_for(bench: Bench, disk: str, granularity: int) -> None:
    bench.transaction(add_bitmap(disk, "b", granularity=granularity))
    bench.write(disk, 0, 512)
    bitmap = bench.bitmap(disk, "b")
    assert bitmap is not None
    assert (bitmap["granularity"], bitmap["count"]) == (granularity, granularity)


@pytest.mark.parametrize("granularity", [256, 1000])
def test_odd_granularity_is_refused(bench: Bench, disk: str, granularity: int) -> None:
    error = bench.refused_transaction(add_bitmap(disk, "b", granularity=granularity))
    assert "ranularity must be" in error.description


def test_name_is_taken_once_on_a_node(bench: Bench, disk: str) -> None:
    bench.transaction(add_bitmap(disk, "b"))
    assert "already exists: b" in bench.refused_transaction(add_bitmap(disk, "b")).description


def test_same_name_on_two_nodes_is_fine(bench: Bench, disk: str, raw: str) -> None:
    bench.transaction(add_bitmap(disk, "b"), add_bitmap(raw, "b"))
    assert bench.bitmap(disk, "b") is not None
    assert bench.bitmap(raw, "b") is not None


def test_long_names_of_vbackup_fit(bench: Bench, disk: str) -> None:
    name = "vbackup-0123456789ab-20261123T101500Z-incremental-vda_456789-working"
    bench.transaction(add_bitmap(disk, name, persistent=True))
    assert bench.bitmap(disk, name) is not None


def test_empty_name_is_refused(bench: Bench, disk: str) -> None:
    assert "name" in bench.refused_transaction(add_bitmap(disk, "")).description


def test_unknown_node_is_named(bench: Bench) -> None:
    error = bench.refused_transaction(add_bitmap("no-such-node", "b"))
    assert error.error_class == "GenericError"
    assert "no-such-node" in error.description


def test_raw_node_takes_no_persistent_bitmap(bench: Bench, raw: str) -> None:
    assert "persistent" in bench.refused_transaction(add_bitmap(raw, "b", persistent=True)).description
    bench.transaction(add_bitmap(raw, "b"))
    assert bench.bitmap(raw, "b") is not None


def test_old_qcow2_takes_no_persistent_bitmap(bench: Bench) -> None:
    """Version 2, which libvirt's storage pools still make."""
    bench.open("old", os.fspath(bench.image(options=("-o", "compat=0.10"))))
    assert bench.nodes()["old"]["image"]["format-specific"]["data"]["compat"] == "0.10"
    assert "bitmap" in bench.refused_transaction(add_bitmap("old", "b", persistent=True)).description
    bench.transaction(add_bitmap("old", "b"))
    assert bench.bitmap("old", "b") is not None


# disable


def test_disabled_bitmap_records_no_more(bench: Bench, disk: str) -> None:
    bench.transaction(add_bitmap(disk, "b"))
    bench.write(disk, 0, 4096)
    bench.transaction(action("block-dirty-bitmap-disable", node=disk, name="b"))
    bench.write(disk, MIB, 4096)
    bitmap = bench.bitmap(disk, "b")
    assert bitmap is not None
    assert (bitmap["recording"], bitmap["count"]) == (False, 64 * KIB)


def test_disabling_twice_is_fine(bench: Bench, disk: str) -> None:
    disable = action("block-dirty-bitmap-disable", node=disk, name="b")
    bench.transaction(add_bitmap(disk, "b"), disable, disable)


@pytest.mark.parametrize("node", ["disk", "no-such-node"])
def test_unknown_bitmap_cannot_be_disabled(bench: Bench, disk: str, node: str) -> None:
    error = bench.refused_transaction(action("block-dirty-bitmap-disable", node=node, name="b"))
    assert "not found" in error.description


# merge


def merge(node: str, target: str, *sources: tuple[str, str]) -> dict[str, object]:
    bitmaps = [{"node": source, "name": name} for source, name in sources]
    return action("block-dirty-bitmap-merge", node=node, target=target, bitmaps=bitmaps)


def test_merge_is_the_union_over_nodes(bench: Bench, disk: str, raw: str) -> None:
    """External snapshots: the changes of a disk are those of all its layers."""
    bench.transaction(add_bitmap(disk, "b"), add_bitmap(raw, "b"))
    bench.write(disk, 0, 4096)
    bench.write(raw, 0, 4096)
    bench.write(raw, MIB, 4096)
    bench.transaction(
        add_bitmap(disk, "working"),
        action("block-dirty-bitmap-disable", node=disk, name="working"),
        merge(disk, "working", (disk, "b"), (raw, "b")),
    )
    working = bench.bitmap(disk, "working")
    assert working is not None
    assert (working["recording"], working["count"]) == (False, 2 * 64 * KIB)


def test_merge_leaves_its_source_as_it_was(bench: Bench, disk: str) -> None:
    bench.transaction(add_bitmap(disk, "b"), add_bitmap(disk, "working"))
    bench.write(disk, 0, 4096)
    before = bench.bitmap(disk, "b")
    bench.transaction(merge(disk, "working", (disk, "b")))
    assert bench.bitmap(disk, "b") == before


def test_merge_takes_another_granularity(bench: Bench, disk: str, raw: str) -> None:
    bench.transaction(add_bitmap(disk, "coarse", granularity=64 * KIB), add_bitmap(raw, "fine", granularity=4 * KIB))
    bench.write(raw, 0, 512)
    bench.transaction(merge(disk, "coarse", (raw, "fine")))
    coarse = bench.bitmap(disk, "coarse")
    assert coarse is not None
    assert coarse["count"] == 64 * KIB


@pytest.mark.parametrize(("node", "name"), [("disk", "no-such-bitmap"), ("no-such-node", "b")])
def test_merge_of_an_unknown_source_is_refused(bench: Bench, disk: str, node: str, name: str) -> None:
    bench.transaction(add_bitmap(disk, "working"))
    assert "not found" in bench.refused_transaction(merge(disk, "working", (node, name))).description


# remove


def test_removed_bitmap_is_not_listed(bench: Bench, disk: str) -> None:
    bench.transaction(add_bitmap(disk, "b", persistent=True))
    bench.execute("block-dirty-bitmap-remove", node=disk, name="b")
    assert bench.bitmap(disk, "b") is None


@pytest.mark.parametrize("node", ["disk", "no-such-node"])
def test_unknown_bitmap_cannot_be_removed(bench: Bench, disk: str, node: str) -> None:
    assert "not found" in bench.refused("block-dirty-bitmap-remove", node=node, name="b").description


def test_bitmap_of_a_job_is_busy_until_the_job_has_ended(bench: Bench, disk: str) -> None:
    target = bench.node("target")
    bench.transaction(
        add_bitmap(disk, "working"), backup("j", disk, target, sync="bitmap", bitmap="working", bitmap_mode="never")
    )
    bench.wait("j", "pending")
    working = bench.bitmap(disk, "working")
    assert working is not None
    assert working["busy"] is True
    assert "in use" in bench.refused("block-dirty-bitmap-remove", node=disk, name="working").description
    assert "in use" in bench.refused_transaction(merge(disk, "working", (disk, "working"))).description
    bench.execute("job-finalize", id="j")
    bench.wait("j", "concluded")
    bench.execute("block-dirty-bitmap-remove", node=disk, name="working")


def test_running_backup_shows_a_bitmap_without_a_name(bench: Bench, disk: str) -> None:
    def nameless() -> list[dict[str, Any]]:
        """Of all nodes: QEMU 7.2 shows it on the disk's, QEMU 10 on that of the job's filter."""
        return [one for node in bench.nodes().values() for one in node.get("dirty-bitmaps", []) if "name" not in one]

    assert nameless() == []
    bench.transaction(backup("j", disk, bench.node("target"), speed=64 * KIB))
    assert nameless() != []


def test_never_mode_leaves_the_bitmap_as_it_was(bench: Bench, disk: str) -> None:
    target = bench.node("target")
    bench.transaction(add_bitmap(disk, "working"))
    bench.write(disk, 0, 4096)
    bench.transaction(backup("j", disk, target, sync="bitmap", bitmap="working", bitmap_mode="never"))
    job = bench.wait("j", "pending")
    assert job["total-progress"] == 64 * KIB < SIZE_BYTES
    bench.execute("job-finalize", id="j")
    bench.wait("j", "concluded")
    working = bench.bitmap(disk, "working")
    assert working is not None
    assert working["count"] == 64 * KIB


# after a crash


def test_bitmap_that_was_not_stored_is_inconsistent(bench: Bench) -> None:
    bitmap = bench.bitmap(bench.crashed_node("disk", "b"), "b")
    assert bitmap is not None
    assert (bitmap["inconsistent"], bitmap["recording"], bitmap["persistent"]) == (True, False, True)


def test_inconsistent_bitmap_can_only_be_removed(bench: Bench) -> None:
    disk = bench.crashed_node("disk", "b")
    bench.transaction(add_bitmap(disk, "working"))
    assert "inconsistent" in bench.refused_transaction(merge(disk, "working", (disk, "b"))).description
    disable = action("block-dirty-bitmap-disable", node=disk, name="b")
    assert "inconsistent" in bench.refused_transaction(disable).description
    bench.execute("block-dirty-bitmap-remove", node=disk, name="b")
    assert bench.bitmap(disk, "b") is None
