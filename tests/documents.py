"""Compare every JSON document that a test makes vbackup print with its schema; strictly, unlike a reader.

A schema lets a reader accept members and values that a newer vbackup adds. Here nothing may be printed that it does not
describe: ``strict`` closes every object, and takes from an open list of values all that is not in it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from vbackup import schemas

#: Members of a schema that apply to the same value as the schema itself.
IN_PLACE = ("allOf", "anyOf", "oneOf")


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, but nothing that it does not describe is valid."""
    return _closed(schema, schema)


def _closed(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A schema of a value: what is beside all that applies to this value is refused."""
    made = _same_value(schema, root)
    if _has_members(schema, root):
        made["unevaluatedProperties"] = False
    return made


def _same_value(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A schema with what it says of members and items made strict, but not of the value itself."""
    made = dict(schema)
    for name in IN_PLACE:
        if name in made:
            made[name] = [_same_value(each, root) for each in _without_any_string(made[name])]
    for name in ("if", "then", "else"):
        if name in made:
            made[name] = _same_value(made[name], root)
    for name in ("properties", "$defs"):
        if name in made:
            # A definition is what several references share: each of them closes it.
            each_of = _closed if name == "properties" else _same_value
            made[name] = {key: each_of(value, root) for key, value in made[name].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(made.get(name), dict):
            made[name] = _closed(made[name], root)
    return made


def _without_any_string(choices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of an open list of values are its values and any string."""
    if any("enum" in each for each in choices):
        return [each for each in choices if each != {"type": "string"}]
    return list(choices)


def _has_members(schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """False for an object of which a schema says nothing, such as an action of QMP."""
    return "properties" in schema or any(_has_members(each, root) for each in applied(schema, root))


def applied(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas that apply to the same value as this one, but for conditions."""
    for name in IN_PLACE:
        yield from schema.get(name, ())
    if "$ref" in schema:
        yield resolved(schema["$ref"], root)


def resolved(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    """What a reference within the schema refers to."""
    definition: dict[str, Any] = root["$defs"][reference.removeprefix("#/$defs/")]
    return definition


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(strict(schemas.load(name)))


def check(document: dict[str, Any]) -> None:
    """Fail if the document is not what its schema describes, or has more in it."""
    name = document.get("schema")
    assert name in schemas.known(), f"no schema of {name!r}; vbackup/schemas needs one"
    error = best_match(_validator(name).iter_errors(document))
    assert error is None, f"{name} at {error.json_path}: {error.message[:500]}\nSee vbackup/schemas."


def check_output(stdout: str, *, is_there: bool = False) -> None:
    """Fail if standard output of a command with --json is not one document as its schema describes it.

    Unless it has to be there, a command can print nothing: it was stopped, or printed its help. ``vbackup schema``
    prints a schema. What a test prints before the command does not count.
    """
    start = re.search(r"^\{", stdout, re.MULTILINE)
    if start is None:
        assert not is_there, f"the command printed no document: {stdout[:500]!r}"
        return
    document = json.loads(stdout[start.start() :])
    if "$schema" not in document:
        check(document)


def check_text(text: str) -> None:
    """Fail if there is a document in the text, at the start of a line, that is not as its schema describes it."""
    for match in re.finditer(r'^\{\s*"schema": "vbackup\.', text, re.MULTILINE):
        document, _end = json.JSONDecoder().raw_decode(text[match.start() :])
        check(document)


def check_events(stderr: str) -> None:
    """Fail if lines of JSON on standard error are not as the schema of events describes them."""
    for line in stderr.splitlines():
        if line.startswith("{"):
            check(json.loads(line))
