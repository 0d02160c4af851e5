"""Values of TOML as values of the configuration: the type and the grammar of one key. Does no I/O."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.config import times
from vbackup.config.keys import LISTS, NUMBERS, Key, Kind
from vbackup.config.model import OptionValue

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
#: Longer than any path or name.
MAX_TEXT = 4096


class InvalidValueError(ValueError):
    """A value is not valid; the text is the end of a sentence. ``item``: the number of the one of several."""

    def __init__(self, message: str, item: int | None = None) -> None:
        self.item = item
        super().__init__(message)


def name_fault(name: str) -> str | None:
    """Return why this cannot name a repository, target, job or notifier: it becomes a part of files and units."""
    if _NAME.fullmatch(name):
        return None
    return "it should have 1 to 63 letters, digits, '_' and '-', and begin with a letter or digit"


def typed(key: Key, value: Any) -> OptionValue | times.Times:
    """Return the value of a key, as Options have it, or as vbackup.config.times does. Raises InvalidValueError."""
    if key.kind is Kind.FLAG:
        if not isinstance(value, bool):
            raise InvalidValueError(f"it is {_shown(value)}")
        return value
    if key.kind in LISTS:
        return _several(key, value)
    if key.kind in times.READERS:
        try:
            return times.READERS[key.kind](value)
        except ValueError as err:
            raise InvalidValueError(str(err)) from None
    if key.kind is Kind.FLAG_OR_WORD and isinstance(value, bool):
        return "auto" if value else "none"
    return _text(key, value)


def _several(key: Key, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_text(key, value),)
    if not isinstance(value, list):
        raise InvalidValueError(f"it is {_shown(value)}")
    texts = []
    for number, one in enumerate(value):
        try:
            texts.append(_text(key, one))
        except InvalidValueError as err:
            raise InvalidValueError(str(err), number) from None
    return tuple(texts)


def _text(key: Key, value: Any) -> str:
    if key.kind in NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = _number(value)
    if not isinstance(value, str):
        raise InvalidValueError(f"it is {_shown(value)}")
    if len(value) > MAX_TEXT:
        raise InvalidValueError(f"it has {len(value)} characters; at most {MAX_TEXT} are allowed")
    strange = next((char for char in value if ord(char) < ord(" ") or ord(char) == 0x7F), None)  # noqa: PLR2004
    if strange is not None:
        raise InvalidValueError(f"it has the character {strange!r}")
    if key.choices and value not in key.choices:
        hint = names.closest(value, key.choices) or f"; there are: {', '.join(key.choices)}"
        raise InvalidValueError(f"it is {_shown(value)}{hint}")
    if key.kind in (Kind.PATH, Kind.PATHS):
        return _absolute(value)
    if key.check is not None:
        try:
            key.check(value)
        except ValueError as err:
            raise InvalidValueError(str(err)) from None
    return value


def _number(value: float) -> str:
    """Return a number as options have it: without an exponent."""
    if isinstance(value, int):
        return str(value)
    return f"{value:f}".rstrip("0").rstrip(".")


def _absolute(text: str) -> str:
    path = os.fspath(Path(text).expanduser()) if text.startswith("~/") else text
    if not path.startswith("/"):
        raise InvalidValueError(f"{text!r} is not an absolute path, and a run begins in no directory")
    return path


def _shown(value: object) -> str:
    """Return a value as TOML has it, shortened, for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."  # noqa: PLR2004
