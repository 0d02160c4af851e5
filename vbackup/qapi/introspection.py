"""The reply to query-qmp-schema as types (QAPI SchemaInfo), which vbackup.qapi.schema checks arguments against.

An entry is read when it is first needed: a schema has about a thousand, of which a command needs a few dozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from vbackup.errors import MalformedError
from vbackup.fields import Fields, objects

WHERE = "query-qmp-schema"
#: json-type of the builtins: int is any integer type, value is any type.
JSON_TYPES = ("string", "number", "int", "boolean", "null", "object", "array", "value")


@dataclass(frozen=True)
class Builtin:
    """A JSON type."""

    json_type: str


@dataclass(frozen=True)
class Enumeration:
    """The values of an enum, each with its features."""

    values: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Array:
    """A list of values of one type."""

    element: str


@dataclass(frozen=True)
class Alternate:
    """One of several types, which the JSON type distinguishes."""

    types: tuple[str, ...]


@dataclass(frozen=True)
class ObjectMember:
    """A member of an object."""

    type: str
    is_optional: bool
    features: frozenset[str]


@dataclass(frozen=True)
class Object:
    """The members of an object; the value of the tag, if any, selects an object type with more members."""

    members: Mapping[str, ObjectMember]
    features: frozenset[str]
    tag: str | None = None
    variants: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A QMP command."""

    arguments: str
    features: frozenset[str]


Type = Union[Builtin, Enumeration, Array, Alternate, Object]


class Introspection:
    """The entries of one QEMU's schema by name.

    Raises MalformedError if the reply is not a list of named entries; the rest is checked when it is used.
    """

    def __init__(self, reply: Any) -> None:
        self._entries: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for index, entry in enumerate(objects(reply, WHERE, MalformedError)):
            name, meta = entry.text("name"), entry.text("meta-type")
            # Commands and types share no names: types are numbered.
            if name in self._entries:
                raise MalformedError(f"{WHERE}[{index}] repeats the name {name!r}.")
            self._entries[name] = meta, reply[index]
        self._types: dict[str, Type] = {}

    def command(self, name: str) -> Command | None:
        """Return a command, or None if this QEMU does not have it."""
        meta, entry = self._entries.get(name, ("", {}))
        if meta != "command":
            return None
        fields = Fields(entry, f"{WHERE}: {name}", MalformedError)
        return Command(fields.text("arg-type"), fields.strings("features"))

    def commands(self) -> list[str]:
        """Return the names of all commands."""
        return [name for name, (meta, _) in self._entries.items() if meta == "command"]

    def type(self, name: str) -> Type:
        """Return a type. Raises MalformedError if it is missing or malformed."""
        if name not in self._types:
            meta, entry = self._entries.get(name, ("", {}))
            read = _READERS.get(meta)
            if read is None:
                raise MalformedError(f"{WHERE} has no type {name!r}.")
            self._types[name] = read(Fields(entry, f"{WHERE}: {name}", MalformedError), entry)
        return self._types[name]


def _builtin(fields: Fields, _entry: Mapping[str, Any]) -> Type:
    json_type = fields.text("json-type")
    if json_type not in JSON_TYPES:
        raise MalformedError(f"{WHERE} has the unknown json-type {json_type!r}.")
    return Builtin(json_type)


def _enumeration(fields: Fields, _entry: Mapping[str, Any]) -> Type:
    if "members" in fields:  # since 6.2, with features
        return Enumeration({value.text("name"): value.strings("features") for value in fields.objects("members")})
    if "values" not in fields:
        raise MalformedError(f"{WHERE} has an enum without values.")
    return Enumeration({value: frozenset() for value in sorted(fields.strings("values"))})


def _array(fields: Fields, _entry: Mapping[str, Any]) -> Type:
    return Array(fields.text("element-type"))


def _alternate(fields: Fields, _entry: Mapping[str, Any]) -> Type:
    return Alternate(tuple(branch.text("type") for branch in fields.objects("members")))


def _object(fields: Fields, entry: Mapping[str, Any]) -> Type:
    members = {}
    for member, raw in zip(fields.objects("members"), entry["members"]):
        # The presence of "default" makes the member optional; its value is null.
        members[member.text("name")] = ObjectMember(
            member.text("type"), is_optional="default" in raw, features=member.strings("features")
        )
    if "tag" not in fields:
        return Object(members, fields.strings("features"))
    tag = fields.text("tag")
    if tag not in members:
        raise MalformedError(f"{WHERE}: the tag {tag!r} is not a member of its object.")
    variants = {variant.text("case"): variant.text("type") for variant in fields.objects("variants")}
    return Object(members, fields.strings("features"), tag=tag, variants=variants)


_READERS: Mapping[str, Callable[[Fields, Mapping[str, Any]], Type]] = {
    "builtin": _builtin,
    "enum": _enumeration,
    "array": _array,
    "alternate": _alternate,
    "object": _object,
}
