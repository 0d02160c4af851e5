"""Every action (of the modules backups, bitmaps and snapshots, and their base) is written as QAPI defines it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given

from tests import qapi
from tests.strategies import action
from vbackup.qapi import actions
from vbackup.qapi.actions import (
    Abort,
    BackupPerf,
    BitmapSyncMode,
    BlockdevBackup,
    BlockdevOnError,
    BlockdevSnapshot,
    BlockdevSnapshotInternalSync,
    BlockdevSnapshotSync,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapClear,
    BlockDirtyBitmapDisable,
    BlockDirtyBitmapEnable,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapRemove,
    DriveBackup,
    MirrorSyncMode,
    NewImageMode,
    OnCbwError,
)

MERGE = "block-dirty-bitmap-merge"

EXAMPLES: list[tuple[actions.Action, dict[str, Any]]] = [
    (Abort(), {"type": "abort", "data": {}}),
    (
        BlockDirtyBitmapAdd("n", "b", granularity=65536, persistent=True, disabled=False),
        {
            "type": "block-dirty-bitmap-add",
            "data": {"node": "n", "name": "b", "granularity": 65536, "persistent": True, "disabled": False},
        },
    ),
    (BlockDirtyBitmapAdd("n", "b"), {"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "b"}}),
    (BlockDirtyBitmapClear("n", "b"), {"type": "block-dirty-bitmap-clear", "data": {"node": "n", "name": "b"}}),
    (BlockDirtyBitmapEnable("n", "b"), {"type": "block-dirty-bitmap-enable", "data": {"node": "n", "name": "b"}}),
    (BlockDirtyBitmapDisable("n", "b"), {"type": "block-dirty-bitmap-disable", "data": {"node": "n", "name": "b"}}),
    (BlockDirtyBitmapRemove("n", "b"), {"type": "block-dirty-bitmap-remove", "data": {"node": "n", "name": "b"}}),
    (
        BlockDirtyBitmapMerge("n", "t", ("bare", BlockDirtyBitmap("other", "b"))),
        {"type": MERGE, "data": {"node": "n", "target": "t", "bitmaps": ["bare", {"node": "other", "name": "b"}]}},
    ),
    (
        BlockdevBackup(
            device="n",
            target="t",
            sync=MirrorSyncMode.BITMAP,
            job_id="j",
            speed=0,
            bitmap="b",
            bitmap_mode=BitmapSyncMode.ON_SUCCESS,
            compress=False,
            on_source_error=BlockdevOnError.STOP,
            on_target_error=BlockdevOnError.ENOSPC,
            auto_finalize=True,
            auto_dismiss=False,
            filter_node_name="f",
            discard_source=True,
            on_cbw_error=OnCbwError.BREAK_SNAPSHOT,
            x_perf=BackupPerf(use_copy_range=True, max_workers=1, max_chunk=0, min_cluster_size=65536),
        ),
        {
            "type": "blockdev-backup",
            "data": {
                "device": "n",
                "target": "t",
                "sync": "bitmap",
                "job-id": "j",
                "speed": 0,
                "bitmap": "b",
                "bitmap-mode": "on-success",
                "compress": False,
                "on-source-error": "stop",
                "on-target-error": "enospc",
                "auto-finalize": True,
                "auto-dismiss": False,
                "filter-node-name": "f",
                "discard-source": True,
                "on-cbw-error": "break-snapshot",
                "x-perf": {"use-copy-range": True, "max-workers": 1, "max-chunk": 0, "min-cluster-size": 65536},
            },
        },
    ),
    (
        DriveBackup("d", "/t.qcow2", MirrorSyncMode.TOP, format="qcow2", mode=NewImageMode.ABSOLUTE_PATHS),
        {
            "type": "drive-backup",
            "data": {
                "device": "d", "target": "/t.qcow2", "sync": "top", "format": "qcow2", "mode": "absolute-paths",
            },
        },
    ),
    (BlockdevSnapshot("n", "o"), {"type": "blockdev-snapshot", "data": {"node": "n", "overlay": "o"}}),
    (
        BlockdevSnapshotInternalSync("d", "s"),
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": "d", "name": "s"}},
    ),
    (
        BlockdevSnapshotSync("/o.qcow2", node_name="n", snapshot_node_name="o", mode=NewImageMode.EXISTING),
        {
            "type": "blockdev-snapshot-sync",
            "data": {
                "snapshot-file": "/o.qcow2", "node-name": "n", "snapshot-node-name": "o", "mode": "existing",
            },
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("example", "document"), EXAMPLES, ids=lambda value: getattr(value, "TYPE", ""))
def test_action_is_written_with_the_names_of_qapi(example: actions.Action, document: dict[str, Any]) -> None:
    assert example.document() == document


def test_there_is_an_example_of_each() -> None:
    assert {type(example) for example, _ in EXAMPLES} == set(actions.TYPES.values())
    assert len(actions.TYPES) == 12


@pytest.mark.parametrize("program", ["qemu", "qemu-storage-daemon"])
def test_model_has_all_that_qemu_has(program: str) -> None:
    """The same members are required; members that QEMU 7.2 does not have are newer."""
    entries = {entry["name"]: entry for entry in qapi.schema(program)}
    union = next(entry for entry in entries.values() if entry.get("tag") == "type")
    seen = set()
    for case in union["variants"]:
        data = entries[entries[case["type"]]["members"][0]["type"]]
        known = {field.name.replace("_", "-"): field for field in dataclasses.fields(actions.TYPES[case["case"]])}
        for member in data["members"]:
            is_optional = known[member["name"]].default is None
            assert is_optional == ("default" in member)
        newer = set(known) - {member["name"] for member in data["members"]}
        assert newer <= {"discard-source", "on-cbw-error"}
        seen.add(case["case"])
    assert seen == set(actions.TYPES)


@pytest.mark.parametrize(
    "enum", ["MirrorSyncMode", "BitmapSyncMode", "BlockdevOnError", "NewImageMode", "CompletionMode"]
)
def test_enums_are_those_of_qemu(enum: str) -> None:
    values = {value.value for value in getattr(actions, enum)}
    assert values in [set(entry["values"]) for entry in qapi.schema() if entry["meta-type"] == "enum"]


def test_only_backups_can_be_grouped() -> None:
    assert {kind for kind, known in actions.TYPES.items() if known.GROUPED} == {"blockdev-backup", "drive-backup"}


def test_versions_of_the_actions() -> None:
    assert {kind: known.SINCE for kind, known in actions.TYPES.items()} == {
        "abort": "1.6",
        "block-dirty-bitmap-add": "2.5",
        "block-dirty-bitmap-clear": "2.5",
        "block-dirty-bitmap-disable": "4.0",
        "block-dirty-bitmap-enable": "4.0",
        "block-dirty-bitmap-merge": "4.0",
        "block-dirty-bitmap-remove": "4.1",
        "blockdev-backup": "2.3",
        "blockdev-snapshot": "2.5",
        "blockdev-snapshot-internal-sync": "1.7",
        "blockdev-snapshot-sync": "1.1",
        "drive-backup": "1.6",
    }


@pytest.mark.parametrize("kind", actions.TYPES.values(), ids=lambda kind: kind.TYPE)
def test_action_is_frozen_and_explains_itself(kind: type[actions.Action]) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (kind.__doc__ or "").startswith(f"{kind.TYPE}: ")


@given(action())
def test_document_is_json_without_null(example: actions.Action) -> None:
    document = example.document()
    assert json.loads(json.dumps(document)) == document
    assert None not in (*document["data"].values(), *document["data"].get("x-perf", {}).values())


# versions


@pytest.mark.parametrize(
    ("path", "value", "version"),
    [
        ("actions[0].type", "block-dirty-bitmap-remove", "4.1"),
        ("actions[0].type", "no-such-action", None),
        ("actions[0].data.discard-source", None, "9.1"),
        ("actions[0].data.on-cbw-error", None, "10.1"),
        ("actions[0].data.x-perf", None, "6.0"),
        ("actions[0].data.x-perf.min-cluster-size", None, "9.2"),
        ("actions[0].data.sync", "bitmap", "4.2"),
        ("actions[0].data.sync", "full", None),
        ("actions[0].data.bitmap-mode", None, "4.2"),
        ("actions[0].data.device", None, None),
        ("actions[0].data.nothing", None, None),
        ("actions[1].data.persistent", None, "2.10"),
        ("actions[2].data.bitmap", None, "2.4"),
        ("actions[9].data.persistent", None, None),
        ("properties", None, "2.5"),
        ("properties.completion-mode", "grouped", "2.5"),
        ("properties.completion-mode", "group", None),
        ("elsewhere", None, None),
    ],
)
def test_introduction_is_known(path: str, value: str | None, version: str | None) -> None:
    kinds = ["blockdev-backup", "block-dirty-bitmap-add", "drive-backup"]
    assert actions.introduced({"actions": [{"type": kind, "data": {}} for kind in kinds]}, path, value=value) == version
