"""A transaction does everything or nothing, and a trailing abort makes it a rehearsal."""

from __future__ import annotations

import pytest

from tests.contract.conftest import DISK, MIB, SIZE_BYTES, Bench, action, add_bitmap, backup


@pytest.fixture
def nodes(bench: Bench) -> Bench:
    for name in ("one", "two", "target-one", "target-two"):
        bench.node(name)
    bench.node("small", size_bytes=MIB)
    return bench


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (add_bitmap("no-such-node", "b"), "no-such-node"),
        (add_bitmap("two", ""), "name"),
        (backup("j2", "two", "no-such-node"), "no-such-node"),
        (backup("j2", "no-such-node", "target-two"), "no-such-node"),
        (backup("j2", "two", "two"), "same"),
        (backup("j2", "two", "small"), "different sizes"),
        (backup("j2", "two", "target-one"), "busy|in use"),
        (backup("j", "two", "target-two"), "already in use"),
        (backup("j2", "two", "target-two", sync="bitmap", bitmap="none", bitmap_mode="never"), "could not be found"),
        (backup("j2", "two", "target-two", sync="bitmap"), "bitmap"),
        (backup("2 j", "two", "target-two"), "Invalid job ID"),
        (action("block-dirty-bitmap-disable", node="two", name="none"), "not found"),
        (action("no-such-action"), "no-such-action"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_one_bad_action_undoes_all(nodes: Bench, bad: dict[str, object], said: str) -> None:
    before = nodes.state()
    error = nodes.refused_transaction(add_bitmap("one", "b"), backup("j", "one", "target-one"), bad)
    assert error.error_class == "GenericError"
    assert any(part in error.description for part in said.split("|")), error.description
    assert nodes.state() == before


def test_disabled_bitmap_records_again_after_a_failed_transaction(nodes: Bench) -> None:
    nodes.transaction(add_bitmap("one", "b"))
    nodes.refused_transaction(action("block-dirty-bitmap-disable", node="one", name="b"), action("abort"))
    bitmap = nodes.bitmap("one", "b")
    assert bitmap is not None
    assert bitmap["recording"] is True


def test_merged_bits_are_taken_back_after_a_failed_transaction(nodes: Bench) -> None:
    nodes.transaction(add_bitmap("one", "from"), add_bitmap("two", "to"))
    nodes.write("one", 0, 4096)
    sources = [{"node": "one", "name": "from"}]
    nodes.refused_transaction(
        action("block-dirty-bitmap-merge", node="two", target="to", bitmaps=sources), action("abort")
    )
    bitmap = nodes.bitmap("two", "to")
    assert bitmap is not None
    assert bitmap["count"] == 0


def test_abort_checks_everything_and_leaves_nothing(nodes: Bench) -> None:
    """What --dry-run rests on."""
    before = nodes.state()
    error = nodes.refused_transaction(
        add_bitmap("one", "b", persistent=True), backup("j", "one", "target-one"), action("abort")
    )
    assert error.description == "Transaction aborted using Abort action"
    assert nodes.state() == before


def test_aborted_job_tells_of_its_short_life(nodes: Bench) -> None:
    nodes.refused_transaction(backup("j", "one", "target-one"), action("abort"))
    assert nodes.told("j", "null") == ["created", "aborting", "concluded", "null"]


def test_targets_can_be_used_after_a_rehearsal(nodes: Bench) -> None:
    actions = [add_bitmap("one", "b"), backup("j", "one", "target-one")]
    nodes.refused_transaction(*actions, action("abort"))
    nodes.transaction(*actions)
    assert nodes.wait("j", "pending")["total-progress"] > 0


def test_all_disks_start_at_one_moment(nodes: Bench) -> None:
    """The new checkpoint records what the guest writes from then on, the working bitmap what it wrote before."""
    disk = nodes.disk_node()
    nodes.transaction(add_bitmap(disk, "base"))
    nodes.write(DISK, 0, 4096)
    nodes.transaction(
        add_bitmap(disk, "next"),
        add_bitmap(disk, "working"),
        action("block-dirty-bitmap-disable", node=disk, name="working"),
        action("block-dirty-bitmap-merge", node=disk, target="working", bitmaps=[{"node": disk, "name": "base"}]),
        backup("j1", disk, "target-one", sync="bitmap", bitmap="working", bitmap_mode="never"),
        backup("j2", "two", "target-two"),
    )
    nodes.write(DISK, MIB, 8192)
    counts = {name: (nodes.bitmap(disk, name) or {}).get("count") for name in ("base", "next", "working")}
    assert counts == {"base": 2 * 65536, "next": 65536, "working": 65536}
    assert nodes.wait("j1", "pending")["total-progress"] == 65536
    assert nodes.wait("j2", "pending")["total-progress"] == SIZE_BYTES


def test_grouped_completion_is_refused_beside_bitmap_actions(nodes: Bench) -> None:
    """The reason why vbackup finalises its jobs itself (vbackup.qemu.jobs)."""
    actions = [add_bitmap("one", "b"), backup("j", "one", "target-one")]
    error = nodes.refused("transaction", actions=actions, properties={"completion-mode": "grouped"})
    assert "completion-mode = grouped" in error.description
    assert nodes.bitmap("one", "b") is None
