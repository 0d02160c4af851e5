"""Transactions that QEMU refuses though its schema allows them, and those that look odd but are not refused.

They stand on the nodes of NODES, whose bitmaps are EXISTING. The unit tests hold vbackup.qapi.rules against them,
the contract tests hold them against QEMU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Action = dict[str, Any]

NODES = ("one", "two", "target-one", "target-two")
VERBS = ("clear", "enable", "disable", "remove")
EXISTING = {"one": ("old", "other"), "two": (), "target-one": (), "target-two": ()}


def bitmap(verb: str, node: str, name: str, **more: Any) -> Action:
    """block-dirty-bitmap-VERB."""
    return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": node, "name": name, **more}}


def merge(node: str, target: str, *bitmaps: str | tuple[str, str]) -> Action:
    """A bare name is a source on the node itself."""
    sources = [one if isinstance(one, str) else {"node": one[0], "name": one[1]} for one in bitmaps]
    return {"type": "block-dirty-bitmap-merge", "data": {"node": node, "target": target, "bitmaps": sources}}


def backup(device: str = "one", target: str = "target-one", sync: str = "full", **more: Any) -> Action:
    """A blockdev-backup with a job id, unless that is None."""
    data = {"job-id": "j", "device": device, "target": target, "sync": sync}
    data.update({name.replace("_", "-"): value for name, value in more.items()})
    return {"type": "blockdev-backup", "data": {name: value for name, value in data.items() if value is not None}}


def by_bitmap(name: str = "old", **more: Any) -> Action:
    """A backup of what is dirty in a bitmap of ``one``."""
    return backup(**{"sync": "bitmap", "bitmap": name, "bitmap_mode": "never", **more})


def snapshot(node: str, overlay: str) -> Action:
    """A blockdev-snapshot."""
    return {"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay}}


def snapshot_file(**more: Any) -> Action:
    """A blockdev-snapshot-sync to a file that cannot be made."""
    data = {name.replace("_", "-"): value for name, value in more.items()}
    return {"type": "blockdev-snapshot-sync", "data": {"snapshot-file": "/nowhere/overlay.qcow2", **data}}


@dataclass(frozen=True)
class Refused:
    """A transaction that QEMU refuses, and so does the checker, at ``path``."""

    name: str
    path: str
    actions: tuple[Action, ...]
    blamed: int | None  #: the action that QEMU's message is seen to be about
    grouped: bool

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {"actions": list(self.actions)}
        return {**given, "properties": {"completion-mode": "grouped"}} if self.grouped else given


def refused(name: str, path: str, *given: Action, blamed: int | None = None, grouped: bool = False) -> Refused:
    """``path`` without its "actions"."""
    return Refused(name, f"actions{path}", given, blamed, grouped)


def _refused_mode(sync: str, name: str | None, mode: str | None) -> str | None:
    """Which of the members is refused."""
    if name is None:
        return "bitmap" if sync in ("incremental", "bitmap") else "bitmap-mode" if mode else None
    if sync == "incremental":
        return "bitmap-mode" if mode in ("never", "always") else None
    if mode is None:
        return "bitmap-mode"
    if sync == "none":
        return "sync"
    return "bitmap-mode" if mode == "never" and sync != "bitmap" else None


#: sync, bitmap and bitmap-mode that do not go together.
MODES = tuple(
    refused(
        f"sync {sync}, bitmap {name}, bitmap-mode {mode}",
        f"[1].data.{_refused_mode(sync, name, mode)}",
        bitmap("clear", "one", "other"),
        backup(sync=sync, bitmap=name, bitmap_mode=mode),
        blamed=1,
    )
    for sync in ("full", "top", "none", "incremental", "bitmap")
    for name in (None, "old")
    for mode in (None, "on-success", "never", "always")
    if _refused_mode(sync, name, mode) is not None
)

#: What an action says by itself.
ALONE = (
    refused("empty bitmap name", "[0].data.name", bitmap("add", "one", ""), blamed=0),
    refused("long bitmap name", "[0].data.name", bitmap("add", "one", "x" * 1024), blamed=0),
    refused("long bitmap name in UTF-8", "[0].data.name", bitmap("add", "one", "ü" * 512), blamed=0),
    *(
        refused(
            f"granularity {size}",
            "[1].data.granularity",
            bitmap("add", "one", "x"),
            bitmap("add", "two", "x", granularity=size),
            blamed=1,
        )
        for size in (0, -1, 256, 1000, 65537, 2**32)
    ),
    refused("job id with a space", "[0].data.job-id", backup(job_id="2 j"), blamed=0),
    refused("empty job id", "[0].data.job-id", backup(job_id=""), blamed=0),
    refused("negative speed", "[0].data.speed", backup(speed=-1), blamed=0),
    refused("speed beyond 63 bits", "[0].data.speed", backup(speed=2**63), blamed=0),
    refused("no worker", "[0].data.x-perf.max-workers", backup(x_perf={"max-workers": 0})),
    refused("too many workers", "[0].data.x-perf.max-workers", backup(x_perf={"max-workers": 2**31})),
    refused("negative chunk", "[0].data.x-perf.max-chunk", backup(x_perf={"max-chunk": -1})),
    refused("odd name of the filter", "[0].data.filter-node-name", backup(filter_node_name="2 x"), blamed=0),
    refused("long name of the filter", "[0].data.filter-node-name", backup(filter_node_name="x" * 32)),
    refused("target is source", "[1].data.target", bitmap("clear", "one", "old"), backup("two", "two"), blamed=1),
)

#: Names that are taken.
TAKEN = (
    refused("added twice", "[1].data.name", bitmap("add", "one", "x"), bitmap("add", "one", "x")),
    refused(
        "added though it is there", "[1].data.name", bitmap("add", "two", "x"), bitmap("add", "one", "old"), blamed=1
    ),
    refused("removed, added", "[1].data.name", bitmap("remove", "one", "old"), bitmap("add", "one", "old"), blamed=1),
    refused("same job id", "[1].data.job-id", backup(), backup("two", "target-two")),
    refused("same target", "[1].data.target", backup(), backup("two", job_id="k")),
    refused("target is copied", "[1].data.device", backup(), backup("target-one", "two", job_id="k")),
    refused(
        "same device without job ids",
        "[1].data.job-id",
        backup(job_id=None),
        backup(target="target-two", job_id=None),
    ),
)

#: Bitmaps that are not there, or not free.
MISSING = (
    *(
        refused(
            f"{verb} of what is not there",
            "[1].data.name",
            bitmap("add", "one", "x"),
            bitmap(verb, "two", "nothing"),
            blamed=1,
        )
        for verb in VERBS
    ),
    *(
        refused(f"removed, then {verb}", "[1].data.name", bitmap("remove", "one", "old"), bitmap(verb, "one", "old"))
        for verb in VERBS
    ),
    *(refused(f"in use, then {verb}", "[1].data.name", by_bitmap(), bitmap(verb, "one", "old")) for verb in VERBS),
    refused("merge into nothing", "[0].data.target", merge("one", "nothing", "old"), blamed=0),
    refused(
        "merge of nothing",
        "[1].data.bitmaps[1]",
        bitmap("add", "two", "x"),
        merge("one", "old", "other", "x"),
        blamed=1,
    ),
    refused(
        "merge of another node's nothing",
        "[0].data.bitmaps[0].name",
        merge("one", "old", ("two", "old")),
        blamed=0,
    ),
    refused(
        "merge into what is added too late",
        "[0].data.target",
        merge("two", "x", ("one", "old")),
        bitmap("add", "two", "x"),
        blamed=0,
    ),
    refused(
        "merge of what is added too late",
        "[0].data.bitmaps[0]",
        merge("one", "old", "x"),
        bitmap("add", "one", "x"),
        blamed=0,
    ),
    refused(
        "merge into what is removed",
        "[1].data.target",
        bitmap("remove", "one", "old"),
        merge("one", "old", "other"),
    ),
    refused(
        "merge of what is removed",
        "[1].data.bitmaps[0]",
        bitmap("remove", "one", "old"),
        merge("one", "other", "old"),
    ),
    refused("backup by nothing", "[0].data.bitmap", by_bitmap("nothing"), blamed=0),
    refused("backup by what is removed", "[1].data.bitmap", bitmap("remove", "one", "old"), by_bitmap()),
    refused(
        "two backups by one bitmap",
        "[1].data.bitmap",
        by_bitmap(),
        by_bitmap(target="target-two", job_id="k"),
    ),
)

GROUPED = (
    refused("grouped add", "[1].type", backup(), bitmap("add", "one", "x"), blamed=1, grouped=True),
    refused("grouped merge", "[0].type", merge("one", "old", "other"), backup(), blamed=0, grouped=True),
)

#: What the fake does not do.
SNAPSHOTS = (
    refused("node is overlay", "[0].data.overlay", snapshot("one", "one"), blamed=0),
    refused(
        "internal snapshot without a name",
        "[1].data.name",
        bitmap("add", "one", "x"),
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": "two", "name": ""}},
        blamed=1,
    ),
    refused("snapshot of no disk", "[0].data.node-name", snapshot_file(), blamed=0),
    refused("overlay without a name", "[0].data.snapshot-node-name", snapshot_file(node_name="one"), blamed=0),
    refused("grouped snapshot", "[0].type", snapshot("one", "two"), blamed=0, grouped=True),
)

REFUSED = (*MODES, *ALONE, *TAKEN, *MISSING, *GROUPED)

#: QEMU carries these out.
ACCEPTED: dict[str, tuple[Action, ...]] = {
    "same name on two nodes": (bitmap("add", "one", "x"), bitmap("add", "two", "x")),
    "added, then used": (
        bitmap("add", "one", "x", granularity=512),
        bitmap("disable", "one", "x"),
        merge("one", "x", "old", ("one", "other")),
        by_bitmap("x"),
    ),
    "added, then removed": (bitmap("add", "one", "x"), bitmap("remove", "one", "x")),
    "merged, then removed": (merge("one", "other", "old"), bitmap("remove", "one", "old")),
    "cleared, enabled, disabled": tuple(bitmap(verb, "one", "old") for verb in ("clear", "enable", "disable")),
    "merged into itself": (merge("one", "old", "old"),),
    "merged from nothing": (merge("one", "old"),),
    "largest granularity": (bitmap("add", "one", "x", granularity=2**31),),
    "longest bitmap name": (bitmap("add", "one", "x" * 1023),),
    "two jobs on one node": (backup(), backup(target="target-two", job_id="k")),
    "incremental without a mode": (backup(sync="incremental", bitmap="old"),),
    "incremental on success": (backup(sync="incremental", bitmap="old", bitmap_mode="on-success"),),
    "full that leaves a bitmap behind": (backup(bitmap="old", bitmap_mode="always"),),
    "fastest": (backup(speed=2**63 - 1, x_perf={"max-workers": 2**31 - 1, "max-chunk": 0}),),
    "nothing at all": (),
}
