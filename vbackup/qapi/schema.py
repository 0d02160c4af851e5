"""Check the arguments of a command against the schema of the running QEMU (query-qmp-schema).

vbackup.qapi.rules has what a schema cannot express; vbackup.qapi.checker applies both.
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

#: Levels; deeper arguments are refused. QAPI's have about a dozen, QEMU's parser accepts 1024.
MAX_DEPTH = 100
#: Introspection shows all integer types as one; vbackup.qapi.rules checks the narrower ones.
MIN_INT, MAX_INT = -(2**63), 2**64 - 1

_EXPECTED = {
    "string": "a string",
    "number": "a number",
    "int": "an integer",
    "boolean": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
    "value": "anything",
}


class Schema:
    """The commands of one QEMU, from its reply to query-qmp-schema.

    Raises MalformedError, here and in every method, if the reply is not what QAPI defines (SchemaInfo).
    """

    def __init__(self, query_qmp_schema_reply: Any) -> None:
        self._introspection = Introspection(query_qmp_schema_reply)

    def qcow2_compression_types(self) -> frozenset[str]:
        """Return the compression types of this QEMU (QAPI Qcow2CompressionType); empty before 5.1, without a choice."""
        node: Type | None = None
        command = self._introspection.command("blockdev-create")
        if command is not None:
            node = self._member(self._introspection.type(command.arguments), "options")
        if isinstance(node, Object) and "qcow2" in node.variants:
            node = self._member(self._introspection.type(node.variants["qcow2"]), "compression-type")
        return frozenset(node.values) if isinstance(node, Enumeration) else frozenset()

    def block_drivers(self) -> frozenset[str]:
        """Return the drivers that blockdev-add accepts (QAPI BlockdevDriver)."""
        command = self._introspection.command("blockdev-add")
        arguments = self._introspection.type(command.arguments) if command is not None else None
        drivers = self._member(arguments, arguments.tag or "") if isinstance(arguments, Object) else None
        return frozenset(drivers.values) if isinstance(drivers, Enumeration) else frozenset()

    def members(self, command: str) -> frozenset[str]:
        """Return the names of the arguments of a command; empty if this QEMU does not have it."""
        known = self._introspection.command(command)
        arguments = self._introspection.type(known.arguments) if known is not None else None
        return frozenset(arguments.members) if isinstance(arguments, Object) else frozenset()

    def _member(self, struct: Type, name: str) -> Type | None:
        if not isinstance(struct, Object) or name not in struct.members:
            return None
        return self._introspection.type(struct.members[name].type)

    def check(self, command: str, arguments: Any) -> tuple[str, ...]:
        """Check the arguments of a command, JSON-ready data, and return warnings.

        A warning is a sentence that begins with the path of what is deprecated or unstable in this QEMU. Raises
        TransactionError, whose message begins with the path of what is wrong.
        """
        known = self._introspection.command(command)
        if known is None:
            hint = wording.similar(command, self._introspection.commands())
            raise TransactionError(command, f"this QEMU has no such command.{hint}")
        check = _Check(self._introspection, command, arguments)
        check.warn(command, "", known.features)
        check.value(known.arguments, arguments, path="", depth=0)
        return tuple(check.warnings)


class _Check:
    """One check of arguments: what is known while it descends into them."""

    def __init__(self, introspection: Introspection, command: str, arguments: Any) -> None:
        self.warnings: list[str] = []
        self._types = introspection
        self._command = command
        self._arguments = arguments

    def value(self, type_name: str, value: Any, *, path: str, depth: int) -> None:
        """Check a value against a type."""
        if depth > MAX_DEPTH:
            raise TransactionError(path, f"this is more than {MAX_DEPTH} levels deep.")
        known = self._types.type(type_name)
        if isinstance(known, Builtin):
            self._builtin(known.json_type, value, path=path, depth=depth)
        elif isinstance(known, Enumeration):
            self._enumeration(known, value, path=path)
        elif isinstance(known, Array):
            self._array(known, value, path=path, depth=depth)
        elif isinstance(known, Object):
            self._object(known, value, path=path, depth=depth)
        else:
            self._alternate(known, value, path=path, depth=depth)

    def warn(self, path: str, subject: str, features: frozenset[str]) -> None:
        """Add warnings about what is deprecated or unstable."""
        if "deprecated" in features:
            self.warnings.append(f"{path}: {subject}deprecated in this QEMU; a later version will remove it.")
        if "unstable" in features:
            self.warnings.append(f"{path}: {subject}unstable in this QEMU; any version can change or remove it.")

    def _builtin(self, json_type: str, value: Any, *, path: str, depth: int) -> None:
        if not _FITS[json_type](value):
            raise self._mistaken(value, path, expected=_EXPECTED[json_type])
        if isinstance(value, str):
            self._text(value, path)
        elif isinstance(value, int) and not isinstance(value, bool) and not MIN_INT <= value <= MAX_INT:
            raise TransactionError(path, f"{wording.shown(value)} must fit in 64 bits.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise TransactionError(path, "JSON has neither infinite numbers nor NaN.")
        elif isinstance(value, dict):
            for name, member in value.items():
                self._name(name, path)
                self._anything(member, wording.below(path, name), depth=depth + 1)
        elif isinstance(value, list):
            for index, element in enumerate(value):
                self._anything(element, f"{path}[{index}]", depth=depth + 1)

    def _anything(self, value: Any, path: str, *, depth: int) -> None:
        """Check a value that may be any JSON."""
        if depth > MAX_DEPTH:
            raise TransactionError(path, f"this is more than {MAX_DEPTH} levels deep.")
        self._builtin("value", value, path=path, depth=depth)

    def _text(self, value: str, path: str) -> None:
        code_point = wording.no_character(value)
        if code_point is not None:
            raise TransactionError(
                path, f"this contains {code_point}, which is not a character; QEMU's JSON parser refuses it."
            )

    def _name(self, name: Any, path: str) -> None:
        if not isinstance(name, str):
            raise TransactionError(
                path or self._command, f"a member's name is {wording.kind(name)}, but must be a string."
            )
        self._text(name, path or self._command)

    def _enumeration(self, enum: Enumeration, value: Any, *, path: str) -> None:
        expected = f"one of {wording.listed(enum.values)}"
        if not isinstance(value, str):
            raise self._mistaken(value, path, expected=expected)
        if value not in enum.values:
            self._text(value, path)
            raise TransactionError(path, self._lacking(value, enum.values, path=path, value=value))
        self.warn(path, f"'{value}' is ", enum.values[value])

    def _array(self, array: Array, value: Any, *, path: str, depth: int) -> None:
        if not isinstance(value, list):
            raise self._mistaken(value, path, expected="a list")
        for index, element in enumerate(value):
            self.value(array.element, element, path=f"{path}[{index}]", depth=depth + 1)

    def _object(self, struct: Object, value: Any, *, path: str, depth: int) -> None:
        if not isinstance(value, dict):
            raise self._mistaken(value, path, expected="an object")
        if path:
            self.warn(path, "this is ", struct.features)
        members = self._members(struct, value, path=path)
        for name in value:
            self._name(name, path)
            if name not in members:
                below = wording.below(path, name)
                raise TransactionError(below, self._lacking(name, members, path=below, value=None))
        for name, member in members.items():
            below = wording.below(path, name)
            if name in value:
                self.warn(below, "this is ", member.features)
                self.value(member.type, value[name], path=below, depth=depth + 1)
            elif not member.is_optional:
                raise TransactionError(below, f"this is missing; it must be {self._expected(member.type)}.")

    def _members(self, struct: Object, value: Mapping[str, Any], *, path: str) -> dict[str, ObjectMember]:
        """Return the members of an object and of the variants that the values of its tags select."""
        members = dict(struct.members)
        seen = [struct]
        while struct.tag is not None:
            branch = self._branch(struct, value, path=path)
            if branch is None:
                break
            struct = branch
            if any(struct is known for known in seen):
                raise MalformedError(f"{WHERE} has an object that is a variant of itself.")
            seen.append(struct)
            members.update(struct.members)
        return members

    def _branch(self, struct: Object, value: Mapping[str, Any], *, path: str) -> Object | None:
        """Return the object type that the value of the tag selects, or None."""
        tag = struct.tag or ""
        below = wording.below(path, tag)
        kind = self._types.type(struct.members[tag].type)
        if not isinstance(kind, Enumeration):
            raise MalformedError(f"{WHERE} has the tag {tag!r}, which is not an enum.")
        if tag not in value:
            if struct.members[tag].is_optional:
                return None
            raise TransactionError(below, f"this is missing; it must be one of {wording.listed(kind.values)}.")
        self._enumeration_only(kind, value[tag], path=below)
        if value[tag] not in struct.variants:
            return None
        branch = self._types.type(struct.variants[value[tag]])
        if not isinstance(branch, Object):
            raise MalformedError(f"{WHERE} has a variant for {value[tag]!r} that is not an object.")
        return branch

    def _enumeration_only(self, kind: Enumeration, value: Any, *, path: str) -> None:
        """Check the value of a tag without warnings, which are added when the tag is checked as a member."""
        before = len(self.warnings)
        self._enumeration(kind, value, path=path)
        del self.warnings[before:]

    def _alternate(self, alternate: Alternate, value: Any, *, path: str, depth: int) -> None:
        for name in alternate.types:
            if _FITS[self._json_type(name)](value):
                self.value(name, value, path=path, depth=depth + 1)
                return
        raise self._mistaken(value, path, expected=" or ".join(self._expected(name) for name in alternate.types))

    def _json_type(self, name: str) -> str:
        known = self._types.type(name)
        if isinstance(known, Builtin):
            return known.json_type
        if isinstance(known, Alternate):
            raise MalformedError(f"{WHERE} has an alternate within an alternate.")
        return {Enumeration: "string", Array: "array", Object: "object"}[type(known)]

    def _expected(self, name: str) -> str:
        """Return what a value of a type must be, in words."""
        known: Type = self._types.type(name)
        if isinstance(known, Enumeration):
            return f"one of {wording.listed(known.values)}"
        if isinstance(known, Alternate):
            return " or ".join(_EXPECTED[self._json_type(branch)] for branch in known.types)
        return _EXPECTED[self._json_type(name)]

    def _mistaken(self, value: Any, path: str, *, expected: str) -> TransactionError:
        return TransactionError(path or self._command, f"this is {wording.kind(value)}, but must be {expected}.")

    def _lacking(self, word: str, known: Mapping[str, object], *, path: str, value: str | None) -> str:
        """Return the message for a member, or an enum value, that this QEMU does not have."""
        what = wording.shown(word)
        hint = wording.similar(word, known)
        if self._command != "transaction":
            return f"this QEMU does not accept {what} here; it accepts {wording.listed(known)}.{hint}"
        since = actions.introduced(self._arguments, path, value=value)
        if since is not None:
            return f"QEMU introduced {what} in version {since}; this QEMU does not have it."
        return f"no QEMU that vbackup knows accepts {what} here; this QEMU accepts {wording.listed(known)}.{hint}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


#: By JSON type: return True if a Python value is of it.
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
