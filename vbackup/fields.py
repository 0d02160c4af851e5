"""Read typed members out of JSON that somebody else wrote.

QMP replies and manifests are checked here, once, at the door; behind it there are only dataclasses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vbackup.errors import VbackupError

#: The largest size QEMU's block layer knows (its offsets are signed 64 bit).
MAX_SIZE_BYTES = 2**63 - 1
#: Of a number in JSON; the largest that means anything has 19.
MAX_DIGITS = 1000


class Fields:
    """A JSON object whose members are read with their type; unknown members are tolerated.

    ``where`` names the object in messages ("query-block[2]"); ``error`` is the class raised, with one
    sentence, when a member is missing or of another type.
    """

    def __init__(self, value: Any, where: str, error: type[VbackupError]) -> None:
        self._where = where
        self._error = error
        if not isinstance(value, dict):
            raise error(f"{where} should be an object, but is {_kind(value)}.")
        self._members: dict[str, Any] = value

    def __contains__(self, name: str) -> bool:
        return self._members.get(name) is not None

    def text(self, name: str) -> str:
        """A string that must be there."""
        value: str = self._get(name, str)
        return value

    def optional_text(self, name: str) -> str | None:
        """A string, or None where it is missing or null."""
        return self.text(name) if name in self else None

    def boolean(self, name: str) -> bool:
        """True or false, which must be there."""
        value: bool = self._get(name, bool)
        return value

    def integer(self, name: str, *, maximum: int = MAX_SIZE_BYTES) -> int:
        """A whole number from 0 to ``maximum`` that must be there."""
        value = self._get(name, int)
        if isinstance(value, bool) or not 0 <= value <= maximum:
            raise self._error(f"{self._where}.{name} should be from 0 to {maximum}, but is {value}.")
        number: int = value
        return number

    def number(self, name: str) -> float:
        """A number of 0 or more that must be there."""
        value = self._get(name, (int, float))
        if isinstance(value, bool) or not 0 <= value <= MAX_SIZE_BYTES:
            raise self._error(f"{self._where}.{name} should be a number of 0 or more, but is {value}.")
        return float(value)

    def object(self, name: str) -> Fields:
        """An object that must be there."""
        return Fields(self._get(name, dict), f"{self._where}.{name}", self._error)

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a list that must be there."""
        return objects(self._get(name, list), f"{self._where}.{name}", self._error)

    def strings(self, name: str) -> frozenset[str]:
        """The strings of a list; none where it is missing or null."""
        values = self._get(name, list) if name in self else []
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self._error(f"{self._where}.{name}[{index}] should be a string, but is {_kind(value)}.")
        return frozenset(values)

    def _get(self, name: str, kind: Any) -> Any:
        value = self._members.get(name)
        if not isinstance(value, kind):
            raise self._error(f"{self._where}.{name} is {_kind(value)}, which it must not be.")
        return value


def parse_json(text: str) -> Any:
    """The value of a JSON text of unknown origin. Raises ValueError, RecursionError.

    A number of a million digits is refused, not computed: before Python 3.11 that takes hours.
    """
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def objects(value: Any, where: str, error: type[VbackupError]) -> Iterator[Fields]:
    """The objects of a JSON list."""
    if not isinstance(value, list):
        raise error(f"{where} should be a list, but is {_kind(value)}.")
    return (Fields(entry, f"{where}[{index}]", error) for index, entry in enumerate(value))


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
