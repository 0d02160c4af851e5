"""Every action is read and written exactly; what is no transaction is never taken for one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import qapi
from tests.strategies import JSON, TEXT, action, mutated, transaction
from vbackup.errors import Status, TransactionError
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
    CompletionMode,
    DriveBackup,
    MirrorSyncMode,
    NewImageMode,
    OnCbwError,
    Transaction,
    blame,
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


def canonical(value: Any) -> str:
    """Tells true from 1, and 1 from 1.0."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize(("made", "document"), EXAMPLES, ids=lambda value: getattr(value, "TYPE", ""))
def test_action_is_written_with_the_names_of_qapi(made: actions.Action, document: dict[str, Any]) -> None:
    assert made.document() == document
    assert actions.parse([document]) == Transaction((made,))


def test_there_is_an_example_of_each() -> None:
    assert {type(made) for made, _ in EXAMPLES} == set(actions.TYPES.values())
    assert len(actions.TYPES) == 12


@pytest.mark.parametrize("program", ["qemu", "qemu-storage-daemon"])
def test_model_has_all_that_qemu_has(program: str) -> None:
    """And with the same members in need of being there; what it has more came later than 7.2."""
    entries = {entry["name"]: entry for entry in qapi.schema(program)}
    union = next(entry for entry in entries.values() if entry.get("tag") == "type")
    seen = set()
    for case in union["variants"]:
        data = entries[entries[case["type"]]["members"][0]["type"]]
        known = actions.TYPES[case["case"]].members()
        for member in data["members"]:
            assert known[member["name"]].is_optional == ("default" in member)
        newer = set(known) - {member["name"] for member in data["members"]}
        assert newer <= {"discard-source", "on-cbw-error"}
        seen.add(case["case"])
    assert seen == set(actions.TYPES)


@pytest.mark.parametrize(
    "enum", ["MirrorSyncMode", "BitmapSyncMode", "BlockdevOnError", "NewImageMode", "CompletionMode"]
)
def test_enums_are_those_of_qemu(enum: str) -> None:
    values = {one.value for one in getattr(actions, enum)}
    assert values in [set(entry["values"]) for entry in qapi.schema() if entry["meta-type"] == "enum"]


def test_only_backups_can_be_grouped() -> None:
    assert {kind for kind, one in actions.TYPES.items() if one.GROUPED} == {"blockdev-backup", "drive-backup"}


def test_versions_of_the_actions() -> None:
    assert {kind: one.SINCE for kind, one in actions.TYPES.items()} == {
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


@pytest.mark.parametrize("one", actions.TYPES.values(), ids=lambda one: one.TYPE)
def test_action_is_frozen_and_explains_itself(one: type[actions.Action]) -> None:
    assert dataclasses.is_dataclass(one)
    assert one.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (one.__doc__ or "").startswith(f"{one.TYPE}: ")


# transactions


def test_properties_are_written_only_where_they_matter() -> None:
    assert Transaction((Abort(),)).document() == {"actions": [{"type": "abort", "data": {}}]}
    assert Transaction((), CompletionMode.GROUPED).document() == {
        "actions": [],
        "properties": {"completion-mode": "grouped"},
    }


@pytest.mark.parametrize("properties", [{}, {"completion-mode": "individual"}])
def test_default_completion_mode_can_be_said(properties: dict[str, str]) -> None:
    assert actions.parse({"actions": [], "properties": properties}) == Transaction(())


@given(transaction())
def test_transaction_comes_back_as_it_was(made: Transaction) -> None:
    document = made.document()
    assert actions.parse(json.loads(json.dumps(document))) == made
    assert canonical(actions.parse(document).document()) == canonical(document)


@given(action())
def test_bare_list_of_actions_is_a_transaction(made: actions.Action) -> None:
    assert actions.parse([made.document()]) == Transaction((made,))


@given(JSON)
def test_any_json_is_refused_or_exact(value: Any) -> None:
    assert_refused_or_exact(value)


@given(st.lists(st.fixed_dictionaries({"type": st.sampled_from(sorted(actions.TYPES)), "data": JSON}), max_size=3))
def test_any_data_of_a_known_action_is_refused_or_exact(value: Any) -> None:
    assert_refused_or_exact(value)


@given(mutated(transaction(max_size=3).map(lambda made: made.document())))
def test_damaged_transaction_is_refused_or_exact(value: Any) -> None:
    assert_refused_or_exact(value)


def assert_refused_or_exact(value: Any) -> None:
    try:
        made = actions.parse(value)
    except TransactionError as err:
        str(err).encode()  # a terminal can show it
        return
    given_arguments = {"actions": value} if isinstance(value, list) else dict(value)
    if given_arguments.get("properties") in ({}, {"completion-mode": "individual"}):
        del given_arguments["properties"]
    assert canonical(made.document()) == canonical(given_arguments)


# messages


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        (None, "arguments", "this is null, but must be an object with 'actions'"),
        ({}, "actions", "this is missing; it must be a list of actions"),
        ({"actions": {}}, "actions", "this is an object; it must be a list"),
        ({"actions": [], "propertys": {}}, "propertys", "Did you mean 'properties'"),
        ({"actions": [], "properties": []}, "properties", "this is a list, but must be an object"),
        ({"actions": [], "properties": {"mode": 1}}, "properties.mode", "completion-mode"),
        (
            {"actions": [], "properties": {"completion-mode": "group"}},
            "properties.completion-mode",
            "'group' must be one of 'individual', 'grouped'. Did you mean 'grouped'?",
        ),
        ([5], "actions[0]", "this is a whole number, but must be an object with 'type' and 'data'"),
        ([{"type": "abort"}], "actions[0].data", "this is missing"),
        ([{"data": {}}], "actions[0].type", "this is missing"),
        ([{"type": "abort", "data": {}, "dta": 1}], "actions[0].dta", "Did you mean 'data'"),
        ([{"type": "abort", "data": []}], "actions[0].data", "this is a list, but must be an object"),
        ([{"type": 1, "data": {}}], "actions[0].type", "this is a whole number, but must be a string"),
        ([{"type": "block-dirty-bitmap-ad", "data": {}}], "actions[0].type", "Did you mean 'block-dirty-bitmap-add'"),
        ([{"type": "zzz", "data": {}}], "actions[0].type", "There is 'abort', 'block-dirty-bitmap-add'"),
        ([{"type": f"x-{MERGE}", "data": {}}], "actions[0].type", f"say '{MERGE}'"),
        ([{"type": "abort", "data": {"x": 1}}], "actions[0].data.x", "there is no such member. There is none."),
        ([{"type": MERGE, "data": {"node": "n", "target": "t"}}], "actions[0].data.bitmaps", "it must be a list"),
        (
            [{"type": MERGE, "data": {"node": "n", "target": "t", "bitmaps": ["b", 5]}}],
            "actions[0].data.bitmaps[1]",
            "this is a whole number, but must be a string, or an object with 'node', 'name'",
        ),
        (
            [{"type": MERGE, "data": {"node": "n", "target": "t", "bitmaps": [{"node": "n", "nam": ""}]}}],
            "actions[0].data.bitmaps[0].nam",
            "Did you mean 'name'",
        ),
        (
            [{"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "b", "granularity": 2**32}}],
            "actions[0].data.granularity",
            "4294967296 must be from 0 to 4294967295",
        ),
        (
            [{"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "b", "persistent": 1}}],
            "actions[0].data.persistent",
            "this is a whole number, but must be true or false",
        ),
        (
            [{"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "b", "persistent": None}}],
            "actions[0].data.persistent",
            "this is null, but must be true or false",
        ),
        (
            [{"type": "blockdev-backup", "data": {"device": "n", "target": "t", "sync": "ful"}}],
            "actions[0].data.sync",
            "'ful' must be one of 'full', 'top', 'none', 'incremental', 'bitmap'. Did you mean 'full'?",
        ),
        (
            [{"type": "blockdev-backup", "data": {"device": "n", "target": "t", "sync": "full", "job_id": "j"}}],
            "actions[0].data.job_id",
            "Did you mean 'job-id'",
        ),
        (
            [{"type": "blockdev-backup", "data": {"device": "\ud800", "target": "t", "sync": "full"}}],
            "actions[0].data.device",
            "this has U+D800",
        ),
    ],
)  # fmt: skip
def test_error_begins_with_the_path_and_says_what_would_work(value: Any, path: str, said: str) -> None:
    with pytest.raises(TransactionError) as caught:
        actions.parse(value)
    assert caught.value.path == path
    assert caught.value.action == (0 if path.startswith("actions[0]") else None)
    assert caught.value.status == Status.USAGE
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("huge", ["x" * 100_000, 10**5000, [[]] * 10_000], ids=["string", "number", "list"])
def test_what_is_huge_is_not_repeated(huge: Any) -> None:
    add = {"node": "n", "name": "b", "granularity": huge}
    for value in (
        [huge],
        [{"type": huge, "data": {}}],
        [{"type": "abort", "data": {"x" * 9999: huge}}],
        [{"type": "block-dirty-bitmap-add", "data": add}],
    ):
        with pytest.raises(TransactionError) as caught:
            actions.parse(value)
        assert len(str(caught.value)) < 700


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
        ("elsewhere", None, None),
    ],
)
def test_introduction_is_known(path: str, value: str | None, version: str | None) -> None:
    kinds = ["blockdev-backup", "block-dirty-bitmap-add", "drive-backup"]
    assert actions.introduced({"actions": [{"type": kind, "data": {}} for kind in kinds]}, path, value) == version


# whose error it is


ADD = {"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "b"}}
BACKUP = {"type": "blockdev-backup", "data": {"device": "n", "target": "t", "sync": "full", "job-id": "j"}}


@pytest.mark.parametrize(
    ("given", "description", "blamed"),
    [
        ([ADD], "Parameter 'actions[7].data.name' is missing", None),
        ([ADD, ADD], "Bitmap already exists: b", None),
        ([BACKUP, ADD], "Bitmap already exists: b", 1),
        ([ADD, BACKUP], "Job ID 'j' already in use", 1),
        ([ADD, BACKUP], "Node 't' is busy: block device is in use by block job: backup", 1),
        ([BACKUP, ADD], "Cannot find device='n' nor node-name='n'", None),
        ([ADD, {**BACKUP, "data": {**BACKUP["data"], "device": "m"}}], "Cannot find device='m' nor node-name='m'", 1),
        ([ADD, BACKUP], "something about 't' that is not known here", 1),
        ([ADD, BACKUP], "something about 'x' that is not known here", None),
        ([ADD, BACKUP], "Input/output error", None),
        ([], "Transaction aborted using Abort action", None),
        ([BACKUP], "", None),
    ],
)
def test_error_is_blamed_on_the_only_action_that_fits(given: Any, description: str, blamed: int | None) -> None:
    assert blame.failing_index(given, description) == blamed


@given(st.lists(JSON.filter(lambda value: isinstance(value, dict))), TEXT | st.just("Bitmap 'x' is busy"))
def test_blame_takes_anything(given_actions: Any, description: str) -> None:
    index = blame.failing_index(given_actions, description)
    assert index is None or 0 <= index < len(given_actions)
