"""A session's transaction: the new checkpoint, what has changed since each earlier one, and the job that saves."""

from __future__ import annotations

from typing import Any

from tests.unit.builders import NOON, TRACKER, TRACKER_ID, UUID, session_checkpoint
from tests.unit.engine.plans import vda, vdb
from vbackup.engine import session_history, session_plan
from vbackup.engine.base import Choice, Reason
from vbackup.engine.session_plan import DiskChoice, SessionPlan
from vbackup.model import Level, NodeBitmap
from vbackup.names import Naming
from vbackup.repository.history import History
from vbackup.sessions.trackers import Tracker

SESSION = "20261123T120500Z-00000a"
FIRST = session_checkpoint(1, "vda", "vdb")
HISTORY = session_history.of(Tracker(TRACKER, "web", UUID).with_committed(FIRST))
FULL = Choice(Level.FULL, None, (), "there is none", code=Reason.NO_BASE)


def since_first() -> Choice:
    bitmap = FIRST.disks["vda"].bitmap
    assert bitmap is not None
    sources = (NodeBitmap("libvirt-2-format", bitmap), NodeBitmap("libvirt-3-format", bitmap))
    return Choice(Level.INCREMENTAL, HISTORY.get(FIRST.id), sources, "changes", code=Reason.BASE)


def make(*choices: DiskChoice, history: History = HISTORY, is_running: bool = True, **changes: Any) -> SessionPlan:
    values: dict[str, Any] = {
        "session_id": SESSION,
        "level": Level.AUTO,
        "last_sequence": 1,
        "taken_ids": [FIRST.id],
        "naming": Naming(TRACKER_ID),
        "token": "0123456789ab",
        "now": NOON,
    }
    return session_plan.make(choices, history=history, is_running=is_running, **{**values, **changes})


def types(made: SessionPlan) -> list[str]:
    return [action["type"] for action in made.moment()]


def test_running_domain_gets_its_checkpoint_and_the_job_in_one_transaction() -> None:
    made = make(DiskChoice(vda(), since_first(), {FIRST.id: since_first()}), DiskChoice(vdb(), FULL, {}))
    assert types(made) == [
        "blockdev-backup",  # first: no guest writes from here on
        "blockdev-backup",
        "block-dirty-bitmap-add",  # the end mark
        "block-dirty-bitmap-merge",
        "block-dirty-bitmap-add",  # the checkpoint's bitmap
        "block-dirty-bitmap-add",  # on the overlay
        "block-dirty-bitmap-merge",
        "block-dirty-bitmap-add",
        "block-dirty-bitmap-merge",
        "block-dirty-bitmap-add",
    ]
    data = [action["data"] for action in made.moment()]
    overlay = made.disks[0].exported
    assert (data[5]["node"], data[5]["name"], data[5]["disabled"]) == (overlay, FIRST.id, True)
    assert [one["node"] for one in data[6]["bitmaps"]] == ["libvirt-2-format", "libvirt-3-format"]
    assert (data[0]["sync"], data[0]["target"], data[0]["device"]) == ("none", overlay, "libvirt-2-format")
    assert (made.level, made.base, made.sequence) == (Level.INCREMENTAL, FIRST.id, 2)
    assert made.disks[0].contexts == {FIRST.id: f"qemu:dirty-bitmap:{FIRST.id}"}
    assert made.disks[1].contexts == {}


def test_names_fit_and_are_the_tracker_s() -> None:
    made = make(DiskChoice(vda(), FULL, {}))
    (disk,) = made.disks
    assert disk.export == f"{SESSION}-vda"
    for name in (disk.exported, disk.filter_node):
        assert name.startswith(f"vbackup-{TRACKER_ID}-")
        assert len(name) <= 31
    assert disk.export_id.startswith(f"vbackup-{TRACKER_ID}-{SESSION}")


def test_domain_that_is_off_is_exported_as_it_is_and_gets_its_checkpoint_later() -> None:
    made = make(DiskChoice(vda(), since_first(), {FIRST.id: since_first()}), is_running=False)
    assert types(made) == ["block-dirty-bitmap-add", "block-dirty-bitmap-merge"]
    assert made.moment()[0]["data"]["name"] == FIRST.id
    assert made.disks[0].exported == "libvirt-2-format"
    assert made.job_ids == []
    assert made.pending([vda()], time=NOON).disks["vda"].bitmap is not None


def test_disk_that_bears_no_checkpoints_is_served_without_a_bitmap() -> None:
    from dataclasses import replace

    node = replace(vda(), read_only_reason="it is only read")
    made = make(DiskChoice(node, FULL, {}), is_running=False)
    assert made.new == []
    disk = made.pending([replace(node, looked_at=node.chain)], time=NOON).disks["vda"]
    assert disk.bitmap is None
    assert disk.chain == node.chain, "the commit compares its files"


def test_checkpoint_s_id_is_a_free_one() -> None:
    made = make(DiskChoice(vda(), FULL, {}), taken_ids=["20261123T120000Z-full"])
    assert made.checkpoint == "20261123T120001Z-full"
    assert made.pending([vda()], time=NOON).id == made.checkpoint
