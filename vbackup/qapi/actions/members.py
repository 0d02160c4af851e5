"""The members of a QAPI struct: written as JSON-ready data, and since which version of QEMU each exists.

Structure is the base of the dataclasses in this package. required() and optional() declare the members of which
something is newer than their struct.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Member:
    """What is newer than the struct, in one of its members."""

    since: str | None = None  #: version of QEMU; None: as old as the struct
    values_since: Mapping[Enum, str] = field(default_factory=dict)  #: the enum's values that are newer than the enum
    structure: type[Structure] | None = None  #: the type of an object


def required(*, values_since: Mapping[Enum, str]) -> Any:
    """Declare a required member whose enum has newer values."""
    return field(metadata={"member": Member(values_since=values_since)})


def optional(
    *,
    since: str | None = None,
    values_since: Mapping[Enum, str] | None = None,
    structure: type[Structure] | None = None,
) -> Any:
    """Declare a member that is left out where its attribute is None."""
    return field(default=None, metadata={"member": Member(since, values_since or {}, structure)})


@dataclass(frozen=True)
class Structure:
    """Base of the QAPI structs. An attribute is named like its member, with underscores for dashes."""

    @classmethod
    def members(cls) -> dict[str, Member]:
        """Return the members by QAPI name."""
        return {
            attribute.name.replace("_", "-"): attribute.metadata.get("member", Member())
            for attribute in dataclasses.fields(cls)
        }

    def document(self) -> dict[str, Any]:
        """Return the struct as JSON-ready data, without the members that are None."""
        values = {name: getattr(self, name.replace("-", "_")) for name in self.members()}
        return {name: _document(value) for name, value in values.items() if value is not None}

    @classmethod
    def since(cls, names: Sequence[str]) -> str | None:
        """Return the version of QEMU that introduced a member, or a member or enum value below it.

        ``names`` is the path to it. None if QAPI does not have it, or it is as old as what contains it.
        """
        member = cls.members().get(names[0])
        if member is None:
            return None
        if len(names) == 1:
            return member.since
        if member.structure is not None:
            return member.structure.since(names[1:])
        versions = {value.value: version for value, version in member.values_since.items()}
        return versions.get(names[1])


def _document(value: Any) -> Any:
    """Return the value of a member as JSON-ready data."""
    if isinstance(value, Structure):
        return value.document()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_document(element) for element in value]
    return value
