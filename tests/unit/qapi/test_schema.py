"""Arguments are checked against the schema of a QEMU; the schemas here are captured from QEMU 7.2."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given

from tests import qapi
from tests.strategies import Transaction, mutated, transaction
from tests.unit.qapi.schemas import members, schema
from vbackup.errors import Status, TransactionError
from vbackup.qapi import wording
from vbackup.qapi.schema import MAX_DEPTH, Schema

QEMU = Schema(qapi.schema())
BACKUP = {"device": "n", "target": "t", "sync": "full"}


def backup(**more: Any) -> dict[str, Any]:
    data = {**BACKUP, **{name.replace("_", "-"): value for name, value in more.items()}}
    return {"actions": [{"type": "blockdev-backup", "data": data}]}


def refusal(arguments: Any, schema: Schema = QEMU, command: str = "transaction") -> TransactionError:
    with pytest.raises(TransactionError) as caught:
        schema.check(command, arguments)
    assert str(caught.value).startswith(f"{caught.value.path}: ")
    return caught.value


# what QEMU 7.2 has


@given(transaction().filter(lambda example: not newer_than_7_2(example.document())))
def test_all_that_the_model_makes_fits(example: Transaction) -> None:
    QEMU.check("transaction", example.document())


def newer_than_7_2(document: dict[str, Any]) -> bool:
    return any(name in json.dumps(document) for name in ('"discard-source"', '"on-cbw-error"', '"min-cluster-size"'))


@given(mutated(transaction(max_size=3).map(lambda example: example.document())))
def test_schema_and_qemus_visitor_agree(arguments: Any) -> None:
    """Except for the width of integers, which introspection does not show."""
    try:
        qapi.visit_command("transaction", arguments)
        said = None
    except qapi.MisfitError as err:
        said = str(err)
    try:
        QEMU.check("transaction", arguments)
        refused = False
    except TransactionError as err:
        refused = "JSON parser" not in str(err)  # never reaches QEMU's visitor
    if refused:
        assert said is not None
    elif said is not None:
        assert "expects" in said or "integer" in said or wording.no_character(json.dumps(arguments, ensure_ascii=False))


# messages


@pytest.mark.parametrize(
    ("arguments", "path", "said"),
    [
        (5, "transaction", "this is an integer, but must be an object"),
        ({}, "actions", "this is missing; it must be a list"),
        ({"actions": None}, "actions", "this is null, but must be a list"),
        ({"actions": [], "more": 1}, "more", "accepts 'actions', 'properties'"),
        ({"actions": ["x"]}, "actions[0]", "this is a string, but must be an object"),
        ({"actions": [{}]}, "actions[0].type", "this is missing; it must be one of 'abort'"),
        ({"actions": [{"type": []}]}, "actions[0].type", "this is a list, but must be one of 'abort'"),
        (
            {"actions": [{"type": "block-dirty-bitmap-merg", "data": {}}]},
            "actions[0].type",
            "no QEMU that vbackup knows accepts 'block-dirty-bitmap-merg' here",
        ),
        ({"actions": [{"type": "abort"}]}, "actions[0].data", "this is missing; it must be an object"),
        ({"actions": [{"type": "abort", "data": {"x": 1}}]}, "actions[0].data.x", "accepts none"),
        (backup(sync="ful"), "actions[0].data.sync", "accepts 'top', 'full'"),
        (backup(sync="ful"), "actions[0].data.sync", "Did you mean 'full'?"),
        (backup(bitmap_mode="x", bitmap=5), "actions[0].data.bitmap", "this is an integer, but must be a string"),
        (backup(speed=True), "actions[0].data.speed", "this is a boolean, but must be an integer"),
        (backup(speed=1.0), "actions[0].data.speed", "this is a floating-point number, but must be an integer"),
        (backup(speed=2**64), "actions[0].data.speed", "18446744073709551616 must fit in 64 bits"),
        (backup(compress=0), "actions[0].data.compress", "must be true or false"),
        (backup(job_id=None), "actions[0].data.job-id", "this is null, but must be a string"),
        (backup(bitmp="b"), "actions[0].data.bitmp", "Did you mean 'bitmap'"),
        (backup(x_perf={"max-worker": 1}), "actions[0].data.x-perf.max-worker", "Did you mean 'max-workers'"),
        (
            {"actions": [{"type": "block-dirty-bitmap-merge", "data": {"node": "n", "target": "t", "bitmaps": [1]}}]},
            "actions[0].data.bitmaps[0]",
            "this is an integer, but must be a string or an object",
        ),
        (
            {"actions": [{"type": "block-dirty-bitmap-merge", "data": {"node": "n", "target": "t", "bitmaps": [{}]}}]},
            "actions[0].data.bitmaps[0].node",
            "this is missing; it must be a string",
        ),
        (
            {"actions": [{"type": "block-dirty-bitmap-merge", "data": {"node": "n", "target": "t"}}]},
            "actions[0].data.bitmaps",
            "this is missing; it must be a list",
        ),
        (
            {
                "actions": [
                    {
                        "type": "block-dirty-bitmap-merge",
                        "data": {"node": "n", "target": "t", "bitmaps": [{"node": "n", "nam": ""}]},
                    }
                ]
            },
            "actions[0].data.bitmaps[0].nam",
            "Did you mean 'name'?",
        ),
        (backup(device="\ud800"), "actions[0].data.device", "this contains U+D800"),
        (
            {"actions": [{"type": "blockdev-backup", "data": {**BACKUP, "job_id": "j"}}]},
            "actions[0].data.job_id",
            "Did you mean 'job-id'?",
        ),
        ({"actions": [{"type": "abort", "data": []}]}, "actions[0].data", "this is a list, but must be an object"),
        ({"actions": [{"type": "abort", "data": {}, "dta": 1}]}, "actions[0].dta", "Did you mean 'data'?"),
        ({"actions": [{"type": "block-dirty-bitmap-ad"}]}, "actions[0].type", "Did you mean 'block-dirty-bitmap-add'"),
        ({"actions": [], "propertys": {}}, "propertys", "Did you mean 'properties'?"),
        ({"actions": [], "properties": []}, "properties", "this is a list, but must be an object"),
        ({"actions": [], "properties": {"mode": 1}}, "properties.mode", "accepts 'completion-mode'"),
        ({"actions": [], "properties": {"completion-mode": 1}}, "properties.completion-mode", "must be one of"),
        (
            {"actions": [], "properties": {"completion-mode": "group"}},
            "properties.completion-mode",
            "accepts 'individual', 'grouped'. Did you mean 'grouped'?",
        ),
    ],
)
def test_error_begins_with_the_path_and_says_what_would_work(arguments: Any, path: str, said: str) -> None:
    error = refusal(arguments)
    assert error.path == path
    assert error.action == (0 if path.startswith("actions[0]") else None)
    assert error.status == Status.USAGE
    assert said in str(error)


@pytest.mark.parametrize("huge", ["x" * 100_000, 10**5000, [[]] * 10_000], ids=["string", "number", "list"])
def test_what_is_huge_is_not_repeated(huge: Any) -> None:
    for action in (
        huge,
        {"type": huge, "data": {}},
        {"type": "abort", "data": {"x" * 9999: huge}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "b", "granularity": huge}},
    ):
        assert len(str(refusal({"actions": [action]}))) < 700


def without(*names: str) -> list[dict[str, Any]]:
    """The captured schema without these names, as an older QEMU has it."""
    entries = copy.deepcopy(qapi.schema())
    for entry in entries:
        for key in ("members", "values", "variants"):
            if key in entry:
                entry[key] = [item for item in entry[key] if name_of(item) not in names]
    return entries


def name_of(item: Any) -> Any:
    return item if isinstance(item, str) else item.get("name", item.get("case"))


@pytest.mark.parametrize(
    ("missing", "arguments", "path", "version"),
    [
        ("discard-source", backup(discard_source=True), "actions[0].data.discard-source", "9.1"),
        ("on-cbw-error", backup(on_cbw_error="break-snapshot"), "actions[0].data.on-cbw-error", "10.1"),
        ("bitmap-mode", backup(bitmap="b", bitmap_mode="never"), "actions[0].data.bitmap-mode", "4.2"),
        ("bitmap", backup(sync="bitmap"), "actions[0].data.sync", "4.2"),
        ("grouped", {"actions": [], "properties": {"completion-mode": "grouped"}}, "properties.completion-mode", "2.5"),
        ("properties", {"actions": [], "properties": {}}, "properties", "2.5"),
        (
            "block-dirty-bitmap-remove",
            {"actions": [{"type": "block-dirty-bitmap-remove", "data": {"node": "n", "name": "b"}}]},
            "actions[0].type",
            "4.1",
        ),
    ],
)
def test_what_only_other_qemus_have_is_told_with_its_version(
    missing: str, arguments: Any, path: str, version: str
) -> None:
    error = refusal(arguments, Schema(without(missing)))
    assert error.path == path
    assert f"in version {version}; this QEMU does not have it" in str(error)


def test_unknown_command_is_told() -> None:
    assert str(refusal({}, command="transactoin")) == (
        "transactoin: this QEMU has no such command. Did you mean 'transaction'?"
    )


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (backup(), None),
        (backup(x_perf={}), "actions[0].data.x-perf: this is unstable"),
        ({"actions": [{"type": "drive-backup", "data": BACKUP}]}, "actions[0].type: 'drive-backup' is deprecated"),
    ],
)
def test_what_may_go_away_is_warned_of(arguments: Any, warning: str | None) -> None:
    warnings = QEMU.check("transaction", arguments)
    assert len(warnings) == (warning is not None)
    assert warning is None or warnings[0].startswith(warning)


# other shapes that QAPI has


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("number", [1, 1.5, -(2**63)], ["1", True, None, float("nan"), float("inf"), 2**64]),
        ("int", [0, 2**64 - 1, -(2**63)], [1.0, 2**64, -(2**63) - 1, False]),
        ("null", [None], [0, False, "", []]),
        ("boolean", [True, False], [0, 1, None]),
        ("string", ["", "ü", "\0", "\U0010fffd"], [b"x", None, "\ud800", "\ufffe", "\ufdd0", "\U0010ffff"]),
        ("value", [None, 1, 1.5, "x", [{"a": [None]}]], [b"x", (1,), [float("nan")], {1: 2}, [{"a": b"x"}]]),
    ],
)
def test_builtins(kind: str, good: list[Any], bad: list[Any]) -> None:
    qemu = schema(a=members(f"m:{kind}"))
    for value in good:
        assert qemu.check("c", {"m": value}) == ()
    for value in bad:
        assert refusal({"m": value}, qemu, "c").path.startswith("m")


def test_enum_of_an_older_qemu_has_only_values() -> None:
    qemu = schema(a=members("m:e"), e={"meta-type": "enum", "values": ["x", "y"]})
    assert qemu.check("c", {"m": "y"}) == ()
    assert "accepts 'x', 'y'" in str(refusal({"m": "z"}, qemu, "c"))


def test_tag_within_a_variant_is_heeded() -> None:
    """Nested unions, since QEMU 8.0."""
    enum = {"meta-type": "enum", "values": ["x", "y"]}
    qemu = schema(
        a=members("t:e", tag="t", variants=[{"case": "x", "type": "b"}]),
        b=members("u:e", tag="u", variants=[{"case": "y", "type": "d"}]),
        d=members("deep:int"),
        e=enum,
    )
    assert qemu.check("c", {"t": "x", "u": "y", "deep": 1}) == ()
    assert qemu.check("c", {"t": "y"}) == ()
    assert refusal({"t": "x", "u": "y"}, qemu, "c").path == "deep"
    assert refusal({"t": "y", "u": "y"}, qemu, "c").path == "u"


def test_features_of_command_and_object_are_warned_of() -> None:
    qemu = schema(a=members("m:b"), b=members(features=["unstable"]))
    assert qemu.check("c", {"m": {}}) == ("m: this is unstable in this QEMU; any version can change or remove it.",)


# what is hostile or broken


def test_type_that_contains_itself_is_as_deep_as_the_arguments() -> None:
    qemu = schema(a=members("more?:[a]"))
    deep: dict[str, Any] = {}
    for _ in range(MAX_DEPTH // 2 - 1):
        deep = {"more": [deep]}
    assert qemu.check("c", deep) == ()
    for _ in range(2000):
        deep = {"more": [deep]}
    assert "levels deep" in str(refusal(deep, qemu, "c"))


def test_endless_arguments_come_to_an_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "levels deep" in str(refusal({"m": endless}, schema(a=members("m:value")), "c"))


def images(**qcow2: Any) -> Schema:
    """A QEMU that can create images (QAPI BlockdevCreateOptions)."""
    options = members("driver:d", tag="driver", variants=[{"case": "qcow2", "type": "q"}, {"case": "raw", "type": "r"}])
    types = {"a": members("options:o"), "o": options, "d": {"meta-type": "enum", "values": ["qcow2", "raw"]}, **qcow2}
    entries = [{"name": "blockdev-create", "meta-type": "command", "arg-type": "a", "ret-type": "0"}]
    return Schema([*entries, *({"name": name, **entry} for name, entry in types.items())])


def test_compressions_are_those_of_the_schema() -> None:
    choice = {"meta-type": "enum", "members": [{"name": "zlib"}, {"name": "zstd"}]}
    assert images(q=members("compression-type?:z"), z=choice).qcow2_compression_types() == {"zlib", "zstd"}


def test_qemu_that_has_no_choice_of_compressions_names_none() -> None:
    """Before 5.1, or a QEMU that cannot create images."""
    assert images(q=members("size:i")).qcow2_compression_types() == frozenset()
    assert schema().qcow2_compression_types() == frozenset()
    assert QEMU.qcow2_compression_types() == frozenset()  # the captured schema has only what is checked
