"""Check a command's arguments by what the running QEMU itself says it takes (query-qmp-schema).

What a schema cannot say is in vbackup.qapi.rules; vbackup.qapi.checker does both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vbackup.errors import MalformedError, TransactionError
from vbackup.qapi import actions, wording
from vbackup.qapi.introspection import (
    WHERE,
    Alternate,
    Array,
    Builtin,
    Enumeration,
    Introspection,
    Object,
    ObjectMember,
    Type,
)

#: Deeper arguments are refused. QAPI's are a dozen deep, QEMU's parser takes 1024.
MAX_DEPTH = 100
#: Introspection tells all integer types as one; the narrower ones are in vbackup.qapi.rules.
MIN_INT, MAX_INT = -(2**63), 2**64 - 1

_EXPECTED = {
    "string": "a string",
    "number": "a number",
    "int": "a whole number",
    "boolean": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
    "value": "anything",
}


class Schema:
    """The commands of one QEMU, made from its reply to query-qmp-schema.

    Raises MalformedError, here and in every method, where the reply is not what QAPI says it is.
    """

    def __init__(self, query_qmp_schema_reply: Any) -> None:
        self._introspection = Introspection(query_qmp_schema_reply)

    def qcow2_compression_types(self) -> frozenset[str]:
        """How this QEMU compresses clusters (QAPI Qcow2CompressionType); before 5.1 it has no choice."""
        node: Type | None = None
        command = self._introspection.command("blockdev-create")
        if command is not None:
            node = self._member(self._introspection.type(command.arguments), "options")
        if isinstance(node, Object) and "qcow2" in node.variants:
            node = self._member(self._introspection.type(node.variants["qcow2"]), "compression-type")
        return frozenset(node.values) if isinstance(node, Enumeration) else frozenset()

    def block_drivers(self) -> frozenset[str]:
        """The drivers that blockdev-add knows (QAPI BlockdevDriver)."""
        command = self._introspection.command("blockdev-add")
        arguments = self._introspection.type(command.arguments) if command is not None else None
        kinds = self._member(arguments, arguments.tag or "") if isinstance(arguments, Object) else None
        return frozenset(kinds.values) if isinstance(kinds, Enumeration) else frozenset()

    def members(self, command: str) -> frozenset[str]:
        """The names of a command's arguments; none where this QEMU does not have it."""
        known = self._introspection.command(command)
        arguments = self._introspection.type(known.arguments) if known is not None else None
        return frozenset(arguments.members) if isinstance(arguments, Object) else frozenset()

    def _member(self, given: Type, name: str) -> Type | None:
        if not isinstance(given, Object) or name not in given.members:
            return None
        return self._introspection.type(given.members[name].type)

    def check(self, command: str, arguments: Any) -> tuple[str, ...]:
        """Check the arguments of a command, JSON-ready data, and return warnings.

        A warning is a sentence that begins with a path: the member is deprecated or unstable in this QEMU.
        Raises TransactionError, which begins with the path of what is wrong.
        """
        found = self._introspection.command(command)
        if found is None:
            hint = wording.similar(command, self._introspection.commands())
            raise TransactionError(command, f"this QEMU has no such command.{hint}")
        check = _Check(self._introspection, command, arguments)
        check.warn(command, "", found.features)
        check.value(found.arguments, arguments, "", 0)
        return tuple(check.warnings)


class _Check:
    """One check: what is at hand while it descends."""

    def __init__(self, introspection: Introspection, command: str, arguments: Any) -> None:
        self.warnings: list[str] = []
        self._types = introspection
        self._command = command
        self._arguments = arguments

    def value(self, type_name: str, value: Any, path: str, depth: int) -> None:
        """Check a value against a type."""
        if depth > MAX_DEPTH:
            raise TransactionError(path, f"this is more than {MAX_DEPTH} levels deep.")
        found = self._types.type(type_name)
        if isinstance(found, Builtin):
            self._builtin(found.json_type, value, path, depth)
        elif isinstance(found, Enumeration):
            self._enumeration(found, value, path)
        elif isinstance(found, Array):
            self._array(found, value, path, depth)
        elif isinstance(found, Object):
            self._object(found, value, path, depth)
        else:
            self._alternate(found, value, path, depth)

    def warn(self, path: str, subject: str, features: frozenset[str]) -> None:
        """Tell of what may go away."""
        if "deprecated" in features:
            self.warnings.append(f"{path}: {subject}deprecated in this QEMU; a later version will not have it.")
        if "unstable" in features:
            self.warnings.append(f"{path}: {subject}unstable in this QEMU; any version can change or remove it.")

    def _builtin(self, json_type: str, value: Any, path: str, depth: int) -> None:
        if not _FITS[json_type](value):
            raise self._mistaken(value, path, _EXPECTED[json_type])
        if isinstance(value, str):
            self._text(value, path)
        elif isinstance(value, int) and not isinstance(value, bool) and not MIN_INT <= value <= MAX_INT:
            raise TransactionError(path, f"{wording.shown(value)} must fit 64 bits.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise TransactionError(path, "JSON has no infinite numbers, nor NaN.")
        elif isinstance(value, dict):
            for name, one in value.items():
                self._name(name, path)
                self._anything(one, wording.below(path, name), depth + 1)
        elif isinstance(value, list):
            for index, one in enumerate(value):
                self._anything(one, f"{path}[{index}]", depth + 1)

    def _anything(self, value: Any, path: str, depth: int) -> None:
        """What only has to be JSON."""
        if depth > MAX_DEPTH:
            raise TransactionError(path, f"this is more than {MAX_DEPTH} levels deep.")
        self._builtin("value", value, path, depth)

    def _text(self, value: str, path: str) -> None:
        odd = wording.no_character(value)
        if odd is not None:
            raise TransactionError(path, f"this has {odd}, which is no character and QEMU's JSON parser refuses.")

    def _name(self, name: Any, path: str) -> None:
        if not isinstance(name, str):
            raise TransactionError(path or self._command, f"a member's name is {wording.kind(name)}, not a string.")
        self._text(name, path or self._command)

    def _enumeration(self, found: Enumeration, value: Any, path: str) -> None:
        expected = f"one of {wording.listed(found.values)}"
        if not isinstance(value, str):
            raise self._mistaken(value, path, expected)
        if value not in found.values:
            self._text(value, path)
            raise TransactionError(path, self._lacking(value, found.values, path, value))
        self.warn(path, f"'{value}' is ", found.values[value])

    def _array(self, found: Array, value: Any, path: str, depth: int) -> None:
        if not isinstance(value, list):
            raise self._mistaken(value, path, "a list")
        for index, one in enumerate(value):
            self.value(found.element, one, f"{path}[{index}]", depth + 1)

    def _object(self, found: Object, value: Any, path: str, depth: int) -> None:
        if not isinstance(value, dict):
            raise self._mistaken(value, path, "an object")
        if path:
            self.warn(path, "this is ", found.features)
        members = self._members(found, value, path)
        for name in value:
            self._name(name, path)
            if name not in members:
                below = wording.below(path, name)
                raise TransactionError(below, self._lacking(name, members, below, None))
        for name, member in members.items():
            below = wording.below(path, name)
            if name in value:
                self.warn(below, "this is ", member.features)
                self.value(member.type, value[name], below, depth + 1)
            elif not member.is_optional:
                raise TransactionError(below, f"this is missing; it must be {self._expected(member.type)}.")

    def _members(self, found: Object, value: Mapping[str, Any], path: str) -> dict[str, ObjectMember]:
        """The members of an object with those that its tags' values choose."""
        members = dict(found.members)
        seen = [found]
        while found.tag is not None:
            branch = self._branch(found, value, path)
            if branch is None:
                break
            found = branch
            if any(found is one for one in seen):
                raise MalformedError(f"{WHERE} has an object that is a variant of itself.")
            seen.append(found)
            members.update(found.members)
        return members

    def _branch(self, found: Object, value: Mapping[str, Any], path: str) -> Object | None:
        """The object type that the tag's value chooses; None where it chooses none."""
        tag = found.tag or ""
        below = wording.below(path, tag)
        kind = self._types.type(found.members[tag].type)
        if not isinstance(kind, Enumeration):
            raise MalformedError(f"{WHERE} has the tag {tag!r}, which is no enum.")
        if tag not in value:
            if found.members[tag].is_optional:
                return None
            raise TransactionError(below, f"this is missing; it must be one of {wording.listed(kind.values)}.")
        self._enumeration_only(kind, value[tag], below)
        if value[tag] not in found.variants:
            return None
        branch = self._types.type(found.variants[value[tag]])
        if not isinstance(branch, Object):
            raise MalformedError(f"{WHERE} has a variant for {value[tag]!r} that is no object.")
        return branch

    def _enumeration_only(self, kind: Enumeration, value: Any, path: str) -> None:
        """Check the tag before its members; they are warned of when the tag's turn comes."""
        before = len(self.warnings)
        self._enumeration(kind, value, path)
        del self.warnings[before:]

    def _alternate(self, found: Alternate, value: Any, path: str, depth: int) -> None:
        for name in found.types:
            if _FITS[self._json_type(name)](value):
                self.value(name, value, path, depth + 1)
                return
        raise self._mistaken(value, path, " or ".join(self._expected(name) for name in found.types))

    def _json_type(self, name: str) -> str:
        found = self._types.type(name)
        if isinstance(found, Builtin):
            return found.json_type
        if isinstance(found, Alternate):
            raise MalformedError(f"{WHERE} has an alternate within an alternate.")
        return {Enumeration: "string", Array: "array", Object: "object"}[type(found)]

    def _expected(self, name: str) -> str:
        """What a value of a type must be, in words."""
        found: Type = self._types.type(name)
        if isinstance(found, Enumeration):
            return f"one of {wording.listed(found.values)}"
        if isinstance(found, Alternate):
            return " or ".join(_EXPECTED[self._json_type(one)] for one in found.types)
        return _EXPECTED[self._json_type(name)]

    def _mistaken(self, value: Any, path: str, expected: str) -> TransactionError:
        return TransactionError(path or self._command, f"this is {wording.kind(value)}, but must be {expected}.")

    def _lacking(self, word: str, known: Mapping[str, object], path: str, value: str | None) -> str:
        """What to say of a member, or an enum value, that this QEMU does not know."""
        what = wording.shown(word)
        hint = wording.similar(word, known)
        if self._command != "transaction":
            return f"this QEMU has no {what} here; it has {wording.listed(known)}.{hint}"
        since = actions.introduced(self._arguments, path, value)
        if since is not None:
            return f"QEMU has {what} since version {since}, but this QEMU does not have it."
        return f"neither this QEMU nor one that vbackup knows has {what} here; it has {wording.listed(known)}.{hint}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


#: Whether a Python value is of a JSON type.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: _is_int(value) or isinstance(value, float),
    "int": _is_int,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "value": lambda value: value is None or isinstance(value, (str, bool, int, float, dict, list)),
}
