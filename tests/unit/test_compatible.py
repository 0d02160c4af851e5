"""A schema that takes something away from readers fails here, with what to do; an addition does not."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import compatible
from tests.compatible import changes, published, published_names
from vbackup import schemas

# the schemas as they are


@pytest.mark.parametrize("name", published_names())
def test_published_document_only_gets_additions(name: str) -> None:
    assert name in schemas.known(), f"{name} has no schema any more, but programs read such documents"
    assert changes(name, published(name), schemas.load(name)) == []


def test_every_addition_is_recorded_so_that_it_stays() -> None:
    for directory in (compatible.CURRENT, compatible.PUBLISHED):
        assert list(directory.glob("*.json"))
    recorded, current = (
        {path.name: json.loads(path.read_text()) for path in directory.glob("*.json")}
        for directory in (compatible.PUBLISHED, compatible.CURRENT)
    )
    changed = sorted(name for name in current.keys() | recorded.keys() if current.get(name) != recorded.get(name))
    assert not changed, f"{changed} differ from tests/fixtures/schemas: 'python -m tests.compatible' records additions"


def test_what_is_a_file_is_known() -> None:
    told = {name for name in schemas.known() if ": " in schemas.title(name) and is_file(schemas.title(name))}
    assert {name.partition("/")[0] for name in told} | {"vbackup.session"} == compatible.KEPT  # which is printed, too


def is_file(title: str) -> bool:
    word = title.partition(":")[0]
    return word.endswith(".json") or word in ("journal", "protected")


# what is found


SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "thing",
    "type": "object",
    "properties": {
        "schema": {"const": "vbackup.thing/1"},
        "size_bytes": {"description": "Size.", "type": "integer", "minimum": 0},
        "note": {"type": ["string", "null"]},
        "level": {"$ref": "#/$defs/level"},
        "kind": {"anyOf": [{"enum": ["a", "b"]}, {"type": "string"}]},
        "host": {"anyOf": [{"$ref": "#/$defs/host"}, {"type": "null"}]},
        "disks": {"type": "array", "items": {"$ref": "#/$defs/disk"}},
        "files": {"type": "object", "additionalProperties": {"type": "string"}},
        "time": {"type": "string", "format": "date-time"},
    },
    "required": ["schema", "size_bytes", "disks"],
    "allOf": [{"if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["note"]}}],
    "$defs": {
        "level": {"enum": ["full", "incremental"]},
        "host": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        "disk": {
            "type": "object",
            "properties": {"dev": {"type": "string"}, "size_bytes": {"type": "integer"}},
            "required": ["dev"],
        },
    },
}


def changed(change: Callable[[dict[str, Any]], object], *, name: str = "vbackup.thing/1") -> list[str]:
    new = copy.deepcopy(SCHEMA)
    change(new)
    return changes(name, SCHEMA, new)


def member(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema["properties"][name]
    return found


TAKEN_AWAY: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "member": (lambda new: new["properties"].pop("note"), "the member note of the document was removed."),
    "member of an entry": (
        lambda new: new["$defs"]["disk"]["properties"].pop("size_bytes"),
        "the member size_bytes of an entry of the member disks of the document was removed.",
    ),
    "member of what can be null": (
        lambda new: new["$defs"]["host"]["properties"].pop("name"),
        "the member name of the member host of the document was removed.",
    ),
    "always there": (
        lambda new: new["required"].remove("size_bytes"),
        "the member size_bytes of the document was always there, and is not any more.",
    ),
    "always there in an entry": (lambda new: new["$defs"]["disk"].pop("required"), "dev .* is not any more."),
    "type": (
        lambda new: member(new, "size_bytes").update(type="string"),
        "size_bytes of the document was of type integer, and is of type string.",
    ),
    "can be null": (lambda new: member(new, "size_bytes").update(type=["integer", "null"]), "integer or null"),
    "cannot be null": (lambda new: member(new, "note").update(type="string"), "was of type null or string"),
    "integer becomes a number": (lambda new: member(new, "size_bytes").update(type="number"), "is of type number"),
    "object can be null": (lambda new: new["properties"].update(host={"$ref": "#/$defs/host"}), "2 kinds of values"),
    "value": (lambda new: new["$defs"]["level"]["enum"].remove("full"), "level .* could be 'full', and cannot"),
    "value more": (lambda new: new["$defs"]["level"]["enum"].append("copy"), "closed list .* 'copy' now"),
    "value of an open list": (lambda new: member(new, "kind")["anyOf"][0]["enum"].remove("a"), "could be 'a'"),
    "open list closed": (
        lambda new: new["properties"].update(kind={"enum": ["a", "b"]}),
        "was one of an open list, and is one of a closed list",
    ),
    "closed list opened": (
        lambda new: new["$defs"].update(level={"anyOf": [{"enum": ["full", "incremental"]}, {"type": "string"}]}),
        "was one of a closed list, and is one of an open list",
    ),
    "list of values gone": (lambda new: new["$defs"].update(level={"type": "string"}), "and is any value"),
    "schema": (lambda new: member(new, "schema").update(const="vbackup.thing/2"), "had const 'vbackup.thing/1'"),
    "limit": (lambda new: member(new, "size_bytes").pop("minimum"), "had minimum 0, and has None"),
    "format": (lambda new: member(new, "time").pop("format"), "time .* had format 'date-time'"),
    "items": (lambda new: member(new, "disks").pop("items"), "what an entry of it is has changed"),
    "values of a map": (
        lambda new: member(new, "files").update(additionalProperties={"type": "integer"}),
        "a member of the member files of the document was of type string",
    ),
    "map": (lambda new: member(new, "files").pop("additionalProperties"), "what a member of it is has changed"),
    "openness": (lambda new: new.update(additionalProperties=False), "what a member of it is has changed"),
    "condition": (lambda new: new.pop("allOf"), "it is not said any more"),
    "member with a condition": (lambda new: new["allOf"][0].update(then={}), "note .* is not any more"),
}


@pytest.mark.parametrize(("change", "sentence"), TAKEN_AWAY.values(), ids=TAKEN_AWAY)
def test_what_is_taken_away_is_named_with_what_to_do(change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    found = changed(change)
    assert re.search(sentence, "\n".join(found)), found
    assert all("raise the version: vbackup.thing/2" in each for each in found)
    assert all(each.startswith("vbackup.thing/1: ") for each in found)


ADDED: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda new: new,
    "member": lambda new: new["properties"].update(more={"type": "string"}),
    "member of an entry": lambda new: new["$defs"]["disk"]["properties"].update(more={"type": "string"}),
    "value of an open list": lambda new: member(new, "kind")["anyOf"][0]["enum"].append("c"),
    "description": lambda new: member(new, "size_bytes").update(description="In bytes.", deprecated=True),
    "title": lambda new: new.update(title="another"),
    "condition": lambda new: new["allOf"].append({"if": {"required": ["note"]}, "then": {"required": ["time"]}}),
    "definition written down elsewhere": lambda new: new["properties"].update(level=new["$defs"].pop("level")),
    "definition beside a member": lambda new: new["properties"].update(
        host={"anyOf": [{"$ref": "#/$defs/host", "properties": {"more": {"type": "string"}}}, {"type": "null"}]}
    ),
}
#: These make no difference to readers of what is printed, but to files that another version has written.
PROMISED: dict[str, Callable[[dict[str, Any]], object]] = {
    "always there": lambda new: new["required"].append("note"),
    "new and always there": lambda new: (
        new["properties"].update(more={"type": "string"}),
        new["required"].append("more"),
    ),
    "limit": lambda new: new["$defs"]["disk"]["properties"]["size_bytes"].update(minimum=0),
}


@pytest.mark.parametrize("change", [*ADDED.values(), *PROMISED.values()], ids=[*ADDED, *PROMISED])
def test_addition_is_no_change(change: Callable[[dict[str, Any]], object]) -> None:
    assert changed(change) == []


@pytest.mark.parametrize("change", PROMISED.values(), ids=PROMISED)
def test_file_of_an_earlier_version_stays_valid(change: Callable[[dict[str, Any]], object]) -> None:
    assert changed(change, name="vbackup.manifest/1")


@pytest.mark.parametrize("change", ADDED.values(), ids=ADDED)
def test_addition_to_a_file_is_no_change(change: Callable[[dict[str, Any]], object]) -> None:
    assert changed(change, name="vbackup.manifest/1") == []


def test_word_of_json_schema_that_is_not_compared_is_refused() -> None:
    with pytest.raises(AssertionError, match="to be compared, too"):
        changed(lambda new: member(new, "disks").update(uniqueItems=True))


# every place of every schema


def places(node: Any, *path: str | int) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where something can be taken away from a schema, and what."""
    if isinstance(node, dict):
        if path and path[-1] not in ("properties", "$defs", "if"):
            for kind in node.keys() & {"type", "enum", "const", "$ref", "required", "items"}:
                # An object in the definitions, and what refers to it with further members, both say that it is one.
                if kind != "type" or not ("$ref" in node or path[-2:-1] == ("$defs",)):
                    yield path, kind
        for name, value in node.items():
            if path and path[-1] == "properties":
                yield path, name
            if name != "if":
                yield from places(value, *path, name)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from places(value, *path, index)


@given(st.data())
def test_whatever_is_taken_away_anywhere_is_found(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(schemas.known()))
    old = schemas.load(name)
    path, key = data.draw(st.sampled_from(sorted(set(places(old)), key=repr)))
    new = copy.deepcopy(old)
    node: Any = new
    for step in path:
        node = node[step]
    if key == "enum":
        node["enum"].pop(data.draw(st.integers(0, len(node["enum"]) - 1)))
    elif key == "required":
        node["required"].pop(data.draw(st.integers(0, len(node["required"]) - 1)))
    else:
        del node[key]
    assert changes(name, old, new), (path, key)


@given(st.data())
def test_member_that_is_added_anywhere_is_no_change(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(schemas.known()))
    old = schemas.load(name)
    objects = [path for path, _ in places(old) if path[-1] == "properties"]
    new = copy.deepcopy(old)
    node: Any = new
    for step in data.draw(st.sampled_from(sorted(set(objects), key=repr))):
        node = node[step]
    node["tomorrow"] = {"type": "integer"}
    assert changes(name, old, new) == []


# recording


def test_only_additions_are_recorded(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compatible, "PUBLISHED", tmp_path)
    assert compatible.main() == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in compatible.CURRENT.glob("*.json")}
    schema = json.loads((tmp_path / "init-1.json").read_text())
    schema["properties"]["weather"] = {"type": "string"}
    before = json.dumps(schema)
    (tmp_path / "init-1.json").write_text(before)
    (tmp_path / "gone-1.json").write_text(before)
    assert compatible.main() == 1
    said = capfd.readouterr().err
    assert "vbackup.init/1: the member weather of the document was removed. Leave it" in said
    assert "vbackup.gone/1 was removed." in said
    assert (tmp_path / "init-1.json").read_text() == before
