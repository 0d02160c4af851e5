"""The JSON Schemas (draft 2020-12) of what vbackup prints and keeps, beside this file: NAME-VERSION.json.

    backup-1.json   what has the member "schema": "vbackup.backup/1"
    common.json     what several documents have; they refer to it as "common.json#/$defs/NAME"

A file also refers to another document as a whole ("error-1.json"). ``load`` puts what a schema refers to into it, so
that it can be used without the other files. vbackup-json(7) says which changes a version allows; tests/compatible.py
finds the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.errors import UsageError

_DIRECTORY = Path(__file__).parent


def known() -> list[str]:
    """Return the names of all schemas, such as "vbackup.backup/1", sorted."""
    files = (path.stem for path in _DIRECTORY.glob("*-*.json"))
    return sorted(f"vbackup.{name}/{version}" for name, _, version in (stem.rpartition("-") for stem in files))


def find(word: str) -> str:
    """Return the name that is meant by vbackup.backup/1, backup/1, or backup, which is its newest version.

    Raises UsageError with the nearest name for another word.
    """
    kind, _, version = word.removeprefix("vbackup.").partition("/")
    versions: dict[str, list[int]] = {}
    for name in known():
        known_kind, _, number = name.removeprefix("vbackup.").partition("/")
        versions.setdefault(known_kind, []).append(int(number))
    if kind not in versions:
        hint = names.closest(kind, versions) or "; 'vbackup schema' lists them"
        raise UsageError(f"No schema {word!r}{hint}.")
    newest = f"vbackup.{kind}/{max(versions[kind])}"
    found = f"vbackup.{kind}/{version}" if "/" in word else newest
    if found not in known():
        raise UsageError(f"No schema {word!r}; the newest of this kind is {newest!r}.")
    return found


def title(name: str) -> str:
    """Return what the document of that name is, in a line."""
    return str(_read(_file(name))["title"])


def load(name: str) -> dict[str, Any]:
    """Return the schema of that name, with all that it refers to in its ``$defs``."""
    found: dict[str, Any] = {}
    schema: dict[str, Any] = _inlined(_read(_file(name)), found)
    return {**schema, "$defs": {key: found[key] for key in sorted(found)}} if found else schema


def _file(name: str) -> str:
    return f"{name.removeprefix('vbackup.').replace('/', '-')}.json"


def _read(file: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((_DIRECTORY / file).read_text(encoding="utf-8"))
    return value


def _inlined(node: Any, found: dict[str, Any]) -> Any:
    """Return the node with references to what is put into ``found`` by its name."""
    if isinstance(node, list):
        return [_inlined(each, found) for each in node]
    if not isinstance(node, dict):
        return node
    return {key: _reference(value, found) if key == "$ref" else _inlined(value, found) for key, value in node.items()}


def _reference(target: str, found: dict[str, Any]) -> str:
    file, _, place = target.partition("#/$defs/")
    key = place or file.removesuffix(".json")
    if key not in found:
        found[key] = {}  # in place of what refers to itself
        definition = _read(file)["$defs"][place] if place else _read(file)
        found[key] = {name: value for name, value in _inlined(definition, found).items() if name != "$schema"}
    return f"#/$defs/{key}"
