"""Find what a change of a schema takes away from those who read the document: only additions are no new version.

``tests/fixtures/schemas`` has the schemas as they were published. ``python -m tests.compatible`` records them again,
with what was added since; it refuses any other change.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vbackup import schemas

PUBLISHED = Path(__file__).parent / "fixtures" / "schemas"
CURRENT = Path(schemas.__file__).parent

#: What people read; changing it changes no document.
_FOR_PEOPLE = frozenset(("$schema", "$defs", "title", "description", "deprecated", "examples"))
#: What says something of a single value; without it, or with another value, readers get what they did not expect.
_OF_A_VALUE = frozenset(("const", "format", "pattern", "minimum", "maximum", "minItems", "maxItems", "minLength"))
_KNOWN = _FOR_PEOPLE | _OF_A_VALUE | {"type", "enum", "anyOf", "allOf", "properties", "required", "items"}
_ANY_STRING = {"type": "string"}

#: Kinds of documents that are files: other versions of vbackup have written them, and will read them.
KEPT = frozenset(
    f"vbackup.{kind}"
    for kind in (
        *("repository", "manifest", "journal", "verified", "boot", "fsck", "protected", "audited", "restored"),
        *("replacing", "merge", "live", "session", "tracker", "streamed", "target", "standby"),
    )
)


def published(name: str) -> dict[str, Any]:
    """The schema of that name as it was published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schemas, "_DIRECTORY", PUBLISHED)
        return schemas.load(name)


def published_names() -> list[str]:
    """All that were published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schemas, "_DIRECTORY", PUBLISHED)
        return schemas.known()


def changes(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A sentence for each change that is no addition, and what to do about it."""
    kind, _, version = name.partition("/")
    remedy = f"Leave it as it was, or raise the version: {kind}/{int(version) + 1} in a new file of vbackup/schemas."
    found = _Comparison(old, new, is_kept=kind in KEPT).of_a_value(old, new, "the document")
    return [f"{name}: {sentence} {remedy}" for sentence in found]


class _Comparison:
    def __init__(self, old: dict[str, Any], new: dict[str, Any], *, is_kept: bool) -> None:
        self._old, self._new = old, new
        self._is_kept = is_kept

    def of_a_value(self, old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
        """Sentences on a schema of a value, which ``where`` names."""
        old, new = flat(old, self._old), flat(new, self._new)
        yield from self._of_type(old, new, where)
        yield from _of_values(old, new, where)
        yield from self._of_choices(old, new, where)
        yield from self._of_conditions(old, new, where)
        yield from self._of_members(old, new, where)
        for name, what in (("items", "an entry"), ("additionalProperties", "a member")):
            if name in old and name in new and isinstance(old[name], dict) and isinstance(new[name], dict):
                yield from self.of_a_value(old[name], new[name], f"{what} of {where}")
            elif old.get(name) != new.get(name):
                yield f"{where}: what {what} of it is has changed."

    def _of_type(self, old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
        before, after = (_types(one) for one in (old, new))
        if before != after:
            yield f"{where} was of type {_list(before)}, and is of type {_list(after)}."
        for name in sorted(_OF_A_VALUE):
            if old.get(name) != new.get(name) and (name in old or self._is_kept):
                yield f"{where} had {name} {old.get(name)!r}, and has {new.get(name)!r}."

    def _of_choices(self, old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
        before, after = (_choices(one) for one in (old, new))
        if len(before) != len(after):
            yield f"{where} was one of {len(before)} kinds of values, and is one of {len(after)}."
            return
        for one, other in zip(before, after):
            yield from self.of_a_value(one, other, where)

    def _of_conditions(self, old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
        before, after = (
            {json.dumps(each["if"], sort_keys=True): each["then"] for each in one.get("allOf", ())}
            for one in (old, new)
        )
        for condition, then in before.items():
            if condition in after:
                yield from self.of_a_value(then, after[condition], f"{where}, where {condition},")
            else:
                yield f"{where}: it is not said any more what it is where {condition}."

    def _of_members(self, old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
        before, after = (one.get("properties", {}) for one in (old, new))
        for name, schema in before.items():
            if name in after:
                yield from self.of_a_value(schema, after[name], f"the member {name} of {where}")
            else:
                yield f"the member {name} of {where} was removed."
        for name in sorted(set(old.get("required", ())) - set(new.get("required", ()))):
            yield f"the member {name} of {where} was always there, and is not any more."
        for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))) if self._is_kept else ():
            yield f"the member {name} of {where} has to be there, but files of earlier versions may not have it."


def flat(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema together with what it refers to: where something is written down is no matter of its readers."""
    assert schema.keys() <= _KNOWN | {"$ref", "additionalProperties"}, f"to be compared, too: {sorted(schema)}"
    if "$ref" not in schema:
        return schema
    base = flat(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    made = {**base, **{name: value for name, value in schema.items() if name != "$ref"}}
    for name, join in (("properties", lambda a, b: {**a, **b}), ("required", lambda a, b: [*a, *b])):
        if name in base and name in schema:
            made[name] = join(base[name], schema[name])
    return made


def _of_values(old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
    (before, was_open), (after, is_open) = (_values(one) for one in (old, new))
    if before is None and after is None:
        return
    if before is None or after is None or was_open != is_open:
        yield f"{where} was {_kind(before, was_open)}, and is {_kind(after, is_open)}."
        return
    for value in [one for one in before if one not in after]:
        yield f"{where} could be {value!r}, and cannot any more."
    for value in [one for one in after if one not in before] if not is_open else ():
        yield f"{where} was one of a closed list of values, and can be {value!r} now."


def _values(schema: dict[str, Any]) -> tuple[list[Any] | None, bool]:
    """The values in the list of a schema, None if it has none, and whether others have to be accepted."""
    if "enum" in schema:
        return schema["enum"], False
    choices = schema.get("anyOf", ())
    listed = [each["enum"] for each in choices if "enum" in each]
    return (listed[0], True) if listed and _ANY_STRING in choices else (None, False)


def _choices(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a schema without those that are its open list of values."""
    choices = schema.get("anyOf", [])
    return [one for one in choices if "enum" not in one and one != _ANY_STRING] if _values(schema)[1] else choices


def _kind(values: list[Any] | None, is_open: bool) -> str:
    return "any value" if values is None else "one of an open list" if is_open else "one of a closed list"


def _types(schema: dict[str, Any]) -> set[str]:
    types = schema.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def _list(words: set[str]) -> str:
    return " or ".join(sorted(words)) or "any"


def main() -> int:
    """Record the schemas as published, unless something was taken away since they were."""
    found = [
        sentence
        for name in published_names()
        for sentence in (
            changes(name, published(name), schemas.load(name)) if name in schemas.known() else [f"{name} was removed."]
        )
    ]
    if found:
        print(*found, sep="\n", file=sys.stderr)
        return 1
    PUBLISHED.mkdir(exist_ok=True)
    for path in CURRENT.glob("*.json"):
        shutil.copyfile(path, PUBLISHED / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
