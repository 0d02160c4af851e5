"""Read typed members of untrusted JSON.

QMP replies and manifests are checked here, once, as they are read; the rest of vbackup works with dataclasses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vbackup.errors import VbackupError

#: The largest size in QEMU's block layer (its offsets are signed 64-bit integers).
MAX_SIZE_BYTES = 2**63 - 1
#: The longest number accepted in JSON; the largest meaningful one has 19 digits.
MAX_DIGITS = 1000


class Fields:
    """A JSON object whose members are read by type; unknown members are ignored.

    ``where`` names the object in messages ("query-block[2]"). ``error`` is raised, with a one-sentence message, if the
    value is not an object, and by every method below if the member is missing or has another type.
    """

    __slots__ = ("_error", "_members", "_where")

    def __init__(self, value: Any, where: str, error: type[VbackupError]) -> None:
        self._where = where
        self._error = error
        if not isinstance(value, dict):
            raise error(f"{where} should be an object, but is {_kind(value)}.")
        self._members: dict[str, Any] = value

    def __contains__(self, name: str) -> bool:
        return self._members.get(name) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all members, for an object whose names are data."""
        return tuple(self._members)

    def raw(self, name: str) -> Any:
        """Return a member of any kind as it is, or None if it is missing or null."""
        return self._members.get(name)

    def text(self, name: str) -> str:
        """Return a required string."""
        value = self._members.get(name)
        return value if type(value) is str else str(self._get(name, str))  # a repository has a million of these calls

    def optional_text(self, name: str) -> str | None:
        """Return a string, or None if it is missing or null."""
        value = self._members.get(name)
        return value if value is None or type(value) is str else self.text(name)

    def boolean(self, name: str) -> bool:
        """Return a required boolean."""
        value: bool = self._get(name, bool)
        return value

    def optional_boolean(self, name: str) -> bool:
        """Return a boolean, False if it is missing or null."""
        return False if self._members.get(name) is None else self.boolean(name)

    def integer(self, name: str) -> int:
        """Return a required integer from 0 to MAX_SIZE_BYTES."""
        value = self._members.get(name)
        if type(value) is int and 0 <= value <= MAX_SIZE_BYTES:
            return value
        value = self._get(name, int)
        if isinstance(value, bool) or not 0 <= value <= MAX_SIZE_BYTES:
            raise self._error(f"{self._where}.{name} should be an integer from 0 to {MAX_SIZE_BYTES}, but is {value}.")
        number: int = value
        return number

    def number(self, name: str) -> float:
        """Return a required number from 0 to MAX_SIZE_BYTES."""
        value = self._get(name, (int, float))
        if isinstance(value, bool) or not 0 <= value <= MAX_SIZE_BYTES:
            raise self._error(f"{self._where}.{name} should be a number that is not negative, but is {value}.")
        return float(value)

    def object(self, name: str) -> Fields:
        """Return a required object."""
        value = self._members.get(name)
        value = value if type(value) is dict else self._get(name, dict)
        return Fields(value, f"{self._where}.{name}", self._error)

    def objects(self, name: str) -> Iterator[Fields]:
        """Return the objects in a required list."""
        return objects(self._get(name, list), f"{self._where}.{name}", self._error)

    def integers(self, name: str) -> list[int]:
        """Return the integers, from 0 to MAX_SIZE_BYTES, in a required list."""
        values = enumerate(self._get(name, list))
        return [Fields({name: value}, f"{self._where}[{index}]", self._error).integer(name) for index, value in values]

    def strings(self, name: str) -> frozenset[str]:
        """Return the strings in a list; empty if it is missing or null."""
        values = self._get(name, list) if name in self else []
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self._error(f"{self._where}.{name}[{index}] should be a string, but is {_kind(value)}.")
        return frozenset(values)

    def _get(self, name: str, kind: Any) -> Any:
        value = self._members.get(name)
        if not isinstance(value, kind):
            raise self._error(f"{self._where}.{name} should be {_NAMES[kind]}, but is {_kind(value)}.")
        return value


def parse_json(text: str) -> Any:
    """Return the value of an untrusted JSON text. Raises ValueError, RecursionError.

    A number of more than MAX_DIGITS digits is refused: before Python 3.11, converting a million digits takes hours.
    """
    return _DECODER.decode(text)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


#: json.loads would make one for each text.
_DECODER = json.JSONDecoder(parse_int=_integer)


def objects(value: Any, where: str, error: type[VbackupError]) -> Iterator[Fields]:
    """Return the objects in a JSON list; ``where`` and ``error`` as for Fields."""
    if not isinstance(value, list):
        raise error(f"{where} should be a list, but is {_kind(value)}.")
    return (Fields(entry, f"{where}[{index}]", error) for index, entry in enumerate(value))


def _kind(value: Any) -> str:
    return "missing" if value is None else _NAMES.get(type(value), f"a {type(value).__name__}")


#: JSON's names for the types that are read here.
_NAMES: dict[Any, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    (int, float): "a number",
    dict: "an object",
    list: "a list",
}
