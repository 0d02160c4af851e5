"""How the members of a QAPI struct are read from JSON and written to it.

Structure is the base of the dataclasses in this package; a Kind knows one type of member. The
classes themselves say what there is: required() and optional() stand for the members in them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from vbackup.errors import TransactionError
from vbackup.qapi import wording

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT32_MAX, UINT64_MAX = 2**32 - 1, 2**64 - 1

S = TypeVar("S", bound="Structure")


class Kind(ABC):
    """A type of QAPI."""

    #: What a value must be, for messages.
    expected: str

    @abstractmethod
    def read(self, value: Any, path: str) -> Any:
        """From JSON. Raises TransactionError with ``path`` if it is no such thing."""

    @abstractmethod
    def write(self, value: Any) -> Any:
        """To JSON."""

    def since(self, names: Sequence[str]) -> str | None:
        """The version of QEMU that the part of this type came with, if that was later than the type."""
        return None

    def mistaken(self, value: Any, path: str) -> TransactionError:
        """The error for a value of another type."""
        return TransactionError(path, f"this is {wording.kind(value)}, but must be {self.expected}.")


class Text(Kind):
    """A str of QAPI."""

    expected = "a string"

    def read(self, value: Any, path: str) -> str:
        """See Kind."""
        if not isinstance(value, str):
            raise self.mistaken(value, path)
        odd = wording.no_character(value)
        if odd is not None:
            raise TransactionError(path, f"this has {odd}, which is no character and QEMU's JSON parser refuses.")
        return value

    def write(self, value: str) -> str:
        """See Kind."""
        return value


class Boolean(Kind):
    """A bool of QAPI."""

    expected = "true or false"

    def read(self, value: Any, path: str) -> bool:
        """See Kind."""
        if not isinstance(value, bool):
            raise self.mistaken(value, path)
        return value

    def write(self, value: bool) -> bool:  # noqa: FBT001  (it is the value)
        """See Kind."""
        return value


class Integer(Kind):
    """An int, uint32 or size of QAPI: whole numbers from ``minimum`` to ``maximum``."""

    expected = "a whole number"

    def __init__(self, minimum: int = INT64_MIN, maximum: int = INT64_MAX) -> None:
        self._minimum = minimum
        self._maximum = maximum

    def read(self, value: Any, path: str) -> int:
        """See Kind."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.mistaken(value, path)
        if not self._minimum <= value <= self._maximum:
            raise TransactionError(
                path, f"{wording.shown(value)} must be from {self._minimum} to {self._maximum} to fit QEMU's type."
            )
        return value

    def write(self, value: int) -> int:
        """See Kind."""
        return value


class Choice(Kind):
    """An enum; ``since`` has the values that came later than the enum."""

    def __init__(self, enum: type[Enum], since: Mapping[Enum, str] | None = None) -> None:
        self._enum = enum
        self._since = {str(value.value): version for value, version in (since or {}).items()}
        self._values = [str(one.value) for one in enum]
        self.expected = f"one of {wording.listed(self._values)}"

    def read(self, value: Any, path: str) -> Enum:
        """See Kind."""
        if not isinstance(value, str):
            raise self.mistaken(value, path)
        if value not in self._values:
            hint = wording.similar(value, self._values)
            raise TransactionError(path, f"{wording.shown(value)} must be {self.expected}.{hint}")
        return self._enum(value)

    def write(self, value: Enum) -> Any:
        """See Kind."""
        return value.value

    def since(self, names: Sequence[str]) -> str | None:
        """See Kind."""
        return self._since.get(names[0]) if len(names) == 1 else None


class Struct(Kind):
    """An object."""

    def __init__(self, structure: type[Structure]) -> None:
        self._structure = structure
        self.expected = f"an object with {wording.listed(structure.members())}"

    def read(self, value: Any, path: str) -> Structure:
        """See Kind."""
        if not isinstance(value, dict):
            raise self.mistaken(value, path)
        return self._structure.parse(value, path)

    def write(self, value: Structure) -> dict[str, Any]:
        """See Kind."""
        return value.document()

    def since(self, names: Sequence[str]) -> str | None:
        """See Kind."""
        return self._structure.since(names)


class TextOr(Kind):
    """An alternate: a bare string, or an object."""

    def __init__(self, structure: type[Structure]) -> None:
        self._object = Struct(structure)
        self._text = Text()
        self.expected = f"a string, or {self._object.expected}"

    def read(self, value: Any, path: str) -> str | Structure:
        """See Kind."""
        if not isinstance(value, (str, dict)):
            raise self.mistaken(value, path)
        return self._text.read(value, path) if isinstance(value, str) else self._object.read(value, path)

    def write(self, value: str | Structure) -> Any:
        """See Kind."""
        return value if isinstance(value, str) else self._object.write(value)

    def since(self, names: Sequence[str]) -> str | None:
        """See Kind."""
        return self._object.since(names)


class ListOf(Kind):
    """An array; a tuple in the dataclasses."""

    def __init__(self, element: Kind) -> None:
        self._element = element
        self.expected = "a list"

    def read(self, value: Any, path: str) -> tuple[Any, ...]:
        """See Kind."""
        if not isinstance(value, list):
            raise self.mistaken(value, path)
        return tuple(self._element.read(one, f"{path}[{index}]") for index, one in enumerate(value))

    def write(self, value: Sequence[Any]) -> list[Any]:
        """See Kind."""
        return [self._element.write(one) for one in value]

    def since(self, names: Sequence[str]) -> str | None:
        """See Kind."""
        return self._element.since(names)


@dataclass(frozen=True)
class Member:
    """What is known of one member."""

    kind: Kind
    is_optional: bool
    since: str | None  #: the version of QEMU, None: the struct's own


def required(kind: Kind, *, since: str | None = None) -> Any:
    """A member that must be there."""
    return field(metadata={"member": Member(kind, is_optional=False, since=since)})


def optional(kind: Kind, *, since: str | None = None) -> Any:
    """A member that may be left out, which is None in the dataclass."""
    return field(default=None, metadata={"member": Member(kind, is_optional=True, since=since)})


@dataclass(frozen=True)
class Structure:
    """Base of the QAPI structs. A member's attribute is named as in QAPI, with underscores for dashes."""

    @classmethod
    def members(cls) -> dict[str, Member]:
        """What there is, by QAPI name."""
        return {one.name.replace("_", "-"): one.metadata["member"] for one in dataclasses.fields(cls)}

    @classmethod
    def parse(cls: type[S], value: Mapping[str, Any], path: str) -> S:
        """From a JSON object. Raises TransactionError that begins with the path of what is wrong."""
        known = cls.members()
        for name in value:
            if name not in known:
                raise unexpected(path, name, known)
        for name, member in known.items():
            if name not in value and not member.is_optional:
                raise TransactionError(
                    wording.below(path, name), f"this is missing; it must be {member.kind.expected}."
                )
        return cls(
            **{
                name.replace("-", "_"): member.kind.read(value[name], wording.below(path, name))
                for name, member in known.items()
                if name in value
            }
        )

    def document(self) -> dict[str, Any]:
        """As JSON-ready data; members that are None are left out."""
        written = {}
        for name, member in self.members().items():
            value = getattr(self, name.replace("-", "_"))
            if value is not None:
                written[name] = member.kind.write(value)
        return written

    @classmethod
    def since(cls, names: Sequence[str]) -> str | None:
        """The version that a member, or what stands below it, came with; None if it is unknown or was there at once."""
        member = cls.members().get(names[0]) if names else None
        if member is None:
            return None
        return member.since if len(names) == 1 else member.kind.since(names[1:])


def unexpected(path: str, name: Any, known: Mapping[str, object]) -> TransactionError:
    """The error for a member that nobody knows."""
    if not isinstance(name, str):
        return TransactionError(path or "arguments", f"a member's name must be a string, but is {wording.kind(name)}.")
    hint = wording.similar(name, known) or f" There is {wording.listed(known)}."
    return TransactionError(wording.below(path, name), f"there is no such member.{hint}")
