"""A QAPI schema as QEMU uses it: its visitor's checks, in its order and with its words.

The fake checks transactions with it. It is apart from vbackup.qapi.schema on purpose, which says other
words, and is held against QEMU through the fake's contract tests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parent / "fixtures" / "schema"
EXPECTED = {"string": "string", "boolean": "boolean", "int": "integer"}
#: Introspection shows neither the width of integers nor the names of types.
UNSIGNED = {"granularity": ("uint64", "uint32_t", 2**32)}
ALTERNATE = "BlockDirtyBitmapOrStr"


class MisfitError(Exception):
    """QEMU's description of what does not fit."""


@functools.cache
def schema(name: str = "qemu") -> list[dict[str, Any]]:
    """A captured reply to query-qmp-schema, what vbackup asks it for."""
    entries: list[dict[str, Any]] = json.loads((SCHEMAS / f"{name}.json").read_text())
    return entries


@functools.cache
def _types() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in schema()}


def visit_command(command: str, arguments: Any) -> None:
    """Check the arguments of a command. Raises MisfitError."""
    _object(_types()[_types()[command]["arg-type"]], arguments, "")


def reachable(entries: list[dict[str, Any]], commands: Collection[str], *, tags: str) -> list[dict[str, Any]]:
    """The entries that the commands need, in the order of the reply.

    Of the command ``tags``, which has all of the block layer below it, only what its drivers are.
    """
    types = {entry["name"]: entry for entry in entries}
    options = types[types[tags]["arg-type"]]
    found = {tags, options["name"]}
    waiting = [*commands, next(one["type"] for one in options["members"] if one["name"] == options["tag"])]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_references(types[name]))
    return [entry for entry in entries if entry["name"] in found]


def _references(entry: dict[str, Any]) -> Iterator[str]:
    for name in ("arg-type", "ret-type", "element-type"):
        if name in entry:
            yield entry[name]
    for one in (*entry.get("members", []), *entry.get("variants", [])):
        if "type" in one:
            yield one["type"]


def _visit(type_name: str, value: Any, path: str) -> None:
    entry = _types()[type_name]
    meta = entry["meta-type"]
    if meta == "object":
        _object(entry, value, path)
    elif meta == "array":
        _expect(isinstance(value, list), path, "array")
        for index, one in enumerate(value):
            _visit(entry["element-type"], one, f"{path}[{index}]")
    elif meta == "enum":
        _expect(isinstance(value, str), path, "string")
        if value not in entry["values"]:
            # The visitor tells an enum's name without its path.
            raise MisfitError(f"Parameter '{_last(path)}' does not accept value '{value}'")
    elif meta == "alternate":
        if not isinstance(value, (str, dict)):
            raise MisfitError(f"Invalid parameter type for 'null', expected: {ALTERNATE}")
        wanted = "builtin" if isinstance(value, str) else "object"
        _visit(
            next(one["type"] for one in entry["members"] if _types()[one["type"]]["meta-type"] == wanted), value, path
        )
    else:
        _builtin(entry["json-type"], value, path)


def _builtin(json_type: str, value: Any, path: str) -> None:
    fits = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
    }[json_type]
    if json_type == "int" and _last(path) in UNSIGNED:
        wide, narrow, end = UNSIGNED[_last(path)]
        if not fits:
            raise MisfitError(f"Parameter '{path}' expects {wide}")
        if not 0 <= value < end:
            raise MisfitError(f"Parameter '{_last(path)}' expects {narrow}")
    _expect(fits, path, EXPECTED[json_type])


def _object(entry: dict[str, Any], value: Any, path: str) -> None:
    _expect(isinstance(value, dict), path, "object")
    known = set()
    waiting = [entry]
    while waiting:
        one = waiting.pop()
        for member in one["members"]:
            name = member["name"]
            known.add(name)
            below = f"{path}.{name}" if path else name
            if name in value:
                _visit(member["type"], value[name], below)
            elif "default" not in member:
                raise MisfitError(f"Parameter '{below}' is missing")
        waiting += [_types()[case["type"]] for case in one.get("variants", []) if case["case"] == value[one["tag"]]]
    for name in value:
        if name not in known:
            raise MisfitError(
                f"Parameter '{path}.{name}' is unexpected" if path else f"Parameter '{name}' is unexpected"
            )


def _expect(fits: bool, path: str, expected: str) -> None:
    if not fits:
        raise MisfitError(f"Invalid parameter type for '{path}', expected: {expected}")


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
