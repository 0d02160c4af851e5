"""The entries of a QMP schema become types; a malformed one is refused when it is needed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.qapi.schemas import members, schema
from vbackup.errors import MalformedError
from vbackup.qapi.introspection import (
    Alternate,
    Array,
    Builtin,
    Command,
    Enumeration,
    Introspection,
    Object,
    ObjectMember,
    Type,
)
from vbackup.qapi.schema import Schema


@pytest.mark.parametrize(
    "types",
    [
        {},
        {"a": members("m:nothing")},
        {"a": members("m:c")},
        {"a": {"meta-type": "object"}},
        {"a": {"meta-type": "object", "members": [{}]}},
        {"a": {"meta-type": "object", "members": [{"name": "m"}]}},
        {"a": {"meta-type": "object", "members": "x"}},
        {"a": {"meta-type": "surprise"}},
        {"a": members("m:b"), "b": {"meta-type": "builtin", "json-type": "surprise"}},
        {"a": members("m:b"), "b": {"meta-type": "enum"}},
        {"a": members("m:b"), "b": {"meta-type": "enum", "values": [1]}},
        {"a": members("m:b"), "b": {"meta-type": "array"}},
        {"a": members("m:b"), "b": {"meta-type": "alternate"}},
        {"a": members("m:b"), "b": {"meta-type": "alternate", "members": [{"type": "b"}]}},
        {"a": members("m:string", tag="x", variants=[])},
        {"a": members("m:string", tag="m", variants=[])},
        {"a": members("m:string", tag="m")},
        {
            "a": members("m:e", tag="m", variants=[{"case": "x", "type": "a"}]),
            "e": {"meta-type": "enum", "values": ["x"]},
        },
        {
            "a": members("m:e", tag="m", variants=[{"case": "x", "type": "e"}]),
            "e": {"meta-type": "enum", "values": ["x"]},
        },
        {"a": members("m:string", features="x")},
    ],
    ids=str,
)
def test_broken_schema_is_malformed(types: Any) -> None:
    broken = schema(**types)
    with pytest.raises(MalformedError):
        broken.check("c", {"m": "x"})


@pytest.mark.parametrize("reply", [None, {}, [1], [{}], [{"name": 1}], [{"name": "x", "meta-type": "enum"}] * 2])
def test_reply_that_is_no_schema_is_malformed(reply: Any) -> None:
    with pytest.raises(MalformedError):
        Schema(reply)


ENTRIES: list[dict[str, Any]] = [
    {"name": "c", "meta-type": "command", "arg-type": "0", "ret-type": "0", "features": ["deprecated"]},
    {
        "name": "0",
        "meta-type": "object",
        "members": [
            {"name": "m", "type": "1"},
            {"name": "o", "type": "int", "default": None, "features": ["unstable"]},
        ],
        "tag": "m",
        "variants": [{"case": "x", "type": "0"}],
    },
    {"name": "1", "meta-type": "enum", "members": [{"name": "x"}, {"name": "y", "features": ["unstable"]}]},
    {"name": "2", "meta-type": "enum", "values": ["b", "a"]},
    {"name": "3", "meta-type": "alternate", "members": [{"type": "int"}, {"type": "0"}]},
    {"name": "[int]", "meta-type": "array", "element-type": "int"},
    {"name": "int", "meta-type": "builtin", "json-type": "int"},
    {"name": "EVENT", "meta-type": "event", "arg-type": "0"},
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "0",
            Object(
                {
                    "m": ObjectMember("1", is_optional=False, features=frozenset()),
                    "o": ObjectMember("int", is_optional=True, features=frozenset({"unstable"})),
                },
                frozenset(),
                tag="m",
                variants={"x": "0"},
            ),
        ),
        ("1", Enumeration({"x": frozenset(), "y": frozenset({"unstable"})})),
        ("2", Enumeration({"a": frozenset(), "b": frozenset()})),
        ("3", Alternate(("int", "0"))),
        ("[int]", Array("int")),
        ("int", Builtin("int")),
    ],
)
def test_entry_is_read_as_its_meta_type(name: str, expected: Type) -> None:
    assert Introspection(ENTRIES).type(name) == expected


def test_only_commands_are_commands() -> None:
    introspection = Introspection(ENTRIES)
    assert introspection.commands() == ["c"]
    assert introspection.command("c") == Command("0", frozenset({"deprecated"}))
    assert introspection.command("EVENT") is None
    assert introspection.command("none") is None


@pytest.mark.parametrize("name", ["c", "EVENT", "none"])
def test_what_is_no_type_is_malformed(name: str) -> None:
    with pytest.raises(MalformedError, match=f"has no type '{name}'"):
        Introspection(ENTRIES).type(name)


def test_damage_to_an_entry_that_is_not_needed_does_no_harm() -> None:
    introspection = Introspection([*ENTRIES, {"name": "4", "meta-type": "enum"}])
    assert introspection.type("int") == Builtin("int")
    with pytest.raises(MalformedError, match="an enum without values"):
        introspection.type("4")
