"""Each of the twelve actions on real QEMU: alone, among others, and undone without a trace.

Sent the way ``vbackup transaction`` sends them. What a trace could be is compared whole: nodes and what they
stand on, bitmaps with their counts, internal snapshots, jobs, files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.conftest import Action, Bench, action, add_bitmap, backup, plain_file
from tests.fake_qemu import FakeQemu
from vbackup.domain.attached import AttachedQemu
from vbackup.errors import TransactionRefusedError
from vbackup.model import DiskNode
from vbackup.operations import transaction
from vbackup.operations.transaction import Done, TransactionRequest
from vbackup.report import Silent
from vbackup.stop import Stop

#: The fake copies no data and makes no images.
NOT_IN_THE_FAKE = ("blockdev-snapshot", "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync", "drive-backup")

#: What QEMU makes.
FILES = ("drive-backup.qcow2", "snapshot-sync.qcow2")
#: A node that stands on ``one``.
USER = "a-user"


def no_disks() -> dict[str, DiskNode]:
    return {}


def send(bench: Bench, *actions: Action, **more: Any) -> Done:
    attached = AttachedQemu("test", bench.monitor, no_disks)
    return transaction.run(TransactionRequest(list(actions), **more), attached=attached, reporter=Silent(), stop=Stop())


def trace(bench: Bench) -> dict[str, Any]:
    """All that a transaction can leave."""
    # flat=True, which others ask with, counts no layers.
    everything = {node["node-name"]: node for node in bench.execute("query-named-block-nodes", flat=False)}
    nodes = {
        name: {
            "drv": node["drv"],
            "file": node["file"],
            "bitmaps": sorted(node.get("dirty-bitmaps", []), key=str),
            "snapshots": [one["name"] for one in node["image"].get("snapshots", [])],
            "depth": node["backing_file_depth"],
        }
        for name, node in everything.items()
    }
    return {
        "nodes": nodes,
        "jobs": bench.execute("query-jobs"),
        "files": sorted(path.name for path in bench.directory.iterdir()),
    }


@dataclass(frozen=True)
class Case:
    """An action, and how to see that it was carried out."""

    action: Action
    happened: Callable[[], bool]


def count(bench: Bench, name: str) -> int | None:
    bitmap = bench.bitmap("one", name)
    return None if bitmap is None else bitmap["count"]


def recording(bench: Bench, name: str) -> bool:
    bitmap = bench.bitmap("one", name)
    assert bitmap is not None
    return bool(bitmap["recording"])


def prepare(bench: Bench) -> None:
    """Node ``one`` with data and the bitmaps ``dirty`` (recording), ``off`` (not) and ``empty``; further nodes."""
    for name in ("one", "two", "target", "target-two"):
        bench.node(name)
    bench.transaction(add_bitmap("one", "dirty"), add_bitmap("one", "off", disabled=True))
    bench.write("one", 0, 4096)
    bench.transaction(add_bitmap("one", "empty"))


def case_abort(_bench: Bench) -> Case:
    return Case(action("abort"), lambda: False)


def case_add(bench: Bench) -> Case:
    made = add_bitmap("one", "new", persistent=True, disabled=True, granularity=32768)
    return Case(made, lambda: (bench.bitmap("one", "new") or {}).get("granularity") == 32768)


def case_remove(bench: Bench) -> Case:
    return Case(action("block-dirty-bitmap-remove", node="one", name="dirty"), lambda: count(bench, "dirty") is None)


def case_clear(bench: Bench) -> Case:
    return Case(action("block-dirty-bitmap-clear", node="one", name="dirty"), lambda: count(bench, "dirty") == 0)


def case_enable(bench: Bench) -> Case:
    return Case(action("block-dirty-bitmap-enable", node="one", name="off"), lambda: recording(bench, "off"))


def case_disable(bench: Bench) -> Case:
    return Case(action("block-dirty-bitmap-disable", node="one", name="dirty"), lambda: not recording(bench, "dirty"))


def case_merge(bench: Bench) -> Case:
    made = action(
        "block-dirty-bitmap-merge", node="one", target="empty", bitmaps=["off", {"node": "one", "name": "dirty"}]
    )
    return Case(made, lambda: count(bench, "empty") == 65536)


def case_backup(bench: Bench) -> Case:
    return Case(backup("j", "one", "target"), lambda: bench.job("j") is not None)


def case_drive_backup(bench: Bench) -> Case:
    path = bench.directory / FILES[0]
    made = action(
        "drive-backup", job_id="j", device="one", target=os.fspath(path), sync="full", format="qcow2",
        auto_finalize=False, auto_dismiss=False,
    )  # fmt: skip
    return Case(made, lambda: bench.job("j") is not None and path.exists())


def case_snapshot(bench: Bench) -> Case:
    bench.execute(
        "blockdev-add", driver="qcow2", node_name="an-overlay", file=plain_file(os.fspath(bench.image())), backing=None
    )
    made = action("blockdev-snapshot", node="one", overlay="an-overlay")
    return Case(made, lambda: depth(bench, "an-overlay") == 1)


def case_snapshot_sync(bench: Bench) -> Case:
    path = bench.directory / FILES[1]
    # Nobody but its user holds an overlay that QEMU has made.
    bench.execute("blockdev-add", driver="raw", node_name=USER, file="one")
    made = action(
        "blockdev-snapshot-sync", node_name="one", snapshot_node_name="an-overlay", snapshot_file=os.fspath(path),
        format="qcow2",
    )  # fmt: skip
    return Case(made, lambda: path.exists() and depth(bench, "an-overlay") == 1)


def case_snapshot_internal(bench: Bench) -> Case:
    made = action("blockdev-snapshot-internal-sync", device="two", name="inside")
    return Case(made, lambda: trace(bench)["nodes"]["two"]["snapshots"] == ["inside"])


def depth(bench: Bench, node: str) -> int | None:
    """How many images the node stands on."""
    return trace(bench)["nodes"].get(node, {}).get("depth")


CASES: dict[str, Callable[[Bench], Case]] = {
    "abort": case_abort,
    "block-dirty-bitmap-add": case_add,
    "block-dirty-bitmap-remove": case_remove,
    "block-dirty-bitmap-clear": case_clear,
    "block-dirty-bitmap-enable": case_enable,
    "block-dirty-bitmap-disable": case_disable,
    "block-dirty-bitmap-merge": case_merge,
    "blockdev-backup": case_backup,
    "blockdev-snapshot": case_snapshot,
    "blockdev-snapshot-internal-sync": case_snapshot_internal,
    "blockdev-snapshot-sync": case_snapshot_sync,
    "drive-backup": case_drive_backup,
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Case]:
    if isinstance(bench.monitor, FakeQemu) and request.param in NOT_IN_THE_FAKE:
        pytest.skip("the fake makes no images")
    prepare(bench)
    yield CASES[request.param](bench)
    if USER in bench.nodes():
        bench.execute("blockdev-del", node_name=USER)
    for name in FILES:
        (bench.directory / name).unlink(missing_ok=True)


def others(bench: Bench) -> tuple[Sequence[Action], Sequence[Action], Callable[[], bool]]:
    """Actions to stand before and behind, and how to see that they were carried out."""
    before = (add_bitmap("two", "before"),)
    behind = (
        action("block-dirty-bitmap-merge", node="two", target="before", bitmaps=[{"node": "one", "name": "dirty"}]),
        backup("other", "two", "target-two"),
    )
    return before, behind, lambda: (bench.bitmap("two", "before") is not None) and bench.job("other") is not None


def test_alone(bench: Bench, case: Case) -> None:
    if case.action["type"] == "abort":
        with pytest.raises(TransactionRefusedError, match="Transaction aborted using Abort action") as caught:
            send(bench, case.action)
        assert caught.value.index == 0
        return
    assert not case.happened()
    send(bench, case.action)
    assert case.happened()


def test_among_others(bench: Bench, case: Case) -> None:
    before, behind, happened = others(bench)
    if case.action["type"] in ("abort", "block-dirty-bitmap-remove"):
        behind = behind[1:]  # what is removed cannot be merged
    untouched = trace(bench)
    if case.action["type"] == "abort":
        with pytest.raises(TransactionRefusedError):
            send(bench, *before, case.action, *behind)
        assert trace(bench) == untouched
        return
    send(bench, *before, case.action, *behind)
    assert case.happened()
    assert happened()


@pytest.mark.parametrize("fails", ["earlier", "later"])
def test_undone_without_a_trace(bench: Bench, case: Case, fails: str) -> None:
    bad = backup("bad", "two", "no-such-node")  # what only QEMU knows
    untouched = trace(bench)
    actions = [bad, case.action] if fails == "earlier" else [case.action, bad]
    with pytest.raises(TransactionRefusedError) as caught:
        send(bench, *actions)
    if case.action["type"] != "abort" or fails == "earlier":
        assert "no-such-node" in caught.value.description
        assert caught.value.index == actions.index(bad)
    assert trace(bench) == untouched
    assert not case.happened()


def test_test_leaves_no_trace(bench: Bench, case: Case) -> None:
    if case.action["type"] == "abort":
        return
    untouched = trace(bench)
    assert send(bench, case.action, test=True).tested
    assert trace(bench) == untouched


def test_job_is_followed_to_its_end_and_dismissed(bench: Bench) -> None:
    prepare(bench)
    data = {"auto_finalize": True, "auto_dismiss": True}
    done = send(bench, add_bitmap("one", "new"), backup("j", "one", "target", **data), wait=True)
    assert [(one.id, one.status.value, one.error) for one in done.jobs] == [("j", "concluded", None)]
    assert bench.execute("query-jobs") == []
    assert bench.bitmap("one", "new") is not None


def test_job_that_was_told_to_wait_has_ended_when_it_is_pending(bench: Bench) -> None:
    prepare(bench)
    done = send(bench, backup("j", "one", "target"), wait=True)
    assert [(one.id, one.status.value) for one in done.jobs] == [("j", "pending")]
    assert bench.wait("j", "pending")


def test_failed_job_is_reported(bench: Bench) -> None:
    prepare(bench)
    bench.failing_node("bad", 5)
    done = send(
        bench,
        backup("j", "one", "target", auto_finalize=True),
        backup("k", "one", "bad", auto_finalize=True),
        wait=True,
    )
    assert {one.id: one.error for one in done.jobs} == {"j": None, "k": "Input/output error"}


def test_jobs_end_together_beside_bitmap_actions(bench: Bench) -> None:
    """What QEMU refuses with completion-mode grouped, vbackup does."""
    prepare(bench)
    bench.failing_node("bad", 5)
    arguments = {
        "actions": [add_bitmap("one", "new"), backup("j", "one", "target"), backup("k", "one", "bad")],
        "properties": {"completion-mode": "grouped"},
    }
    attached = AttachedQemu("test", bench.monitor, no_disks)
    done = transaction.run(TransactionRequest(arguments, wait=True), attached=attached, reporter=Silent(), stop=Stop())
    assert done.completion is transaction.Completion.TOGETHER
    assert {one.id: one.error for one in done.jobs} == {"j": "Operation canceled", "k": "Input/output error"}
