"""The words of messages about a user's JSON: what was given, what would work.

vbackup.qapi.schema, vbackup.qapi.rules and vbackup.operations.transaction find the errors; TransactionError carries the
message.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_PLANES = "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
_NO_CHARACTER = re.compile(f"[\ud800-\udfff\ufdd0-\ufdef{_PLANES}]")
#: Longer integers are not written out in messages; QEMU's have 64 bits.
MAX_BITS = 128
#: Characters. Longer strings are cut in messages, and no similar words are suggested for them.
LONGEST_SHOWN = 60

_KINDS: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a floating-point number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def kind(value: Any) -> str:
    """Return the JSON type of a value, in words; its Python type if it is not JSON."""
    return _KINDS.get(type(value), f"a {type(value).__name__}, which is not JSON")


def shown(value: Any) -> str:
    """Return the value as text if it is short, else its type."""
    if isinstance(value, str):
        text = value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "..."
        return repr(text)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= MAX_BITS else "a huge number"
    return kind(value)


def listed(words: Collection[str]) -> str:
    """Return the words in quotes, separated by commas, or "none"."""
    return ", ".join(f"'{word}'" for word in words) or "none"


def similar(word: Any, known: Collection[str]) -> str:
    """Return a sentence that suggests the known words most like ``word``; empty if none is."""
    if not isinstance(word, str) or len(word) > LONGEST_SHOWN:
        return ""
    import difflib  # for a message only

    near = difflib.get_close_matches(word.replace("_", "-").lower(), known, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(suggestion) for suggestion in near)}?" if near else ""


def below(path: str, name: str) -> str:
    """Return the path of a member; a terminal can show it, whatever the name is."""
    shown_name = name if len(name) <= LONGEST_SHOWN else name[:LONGEST_SHOWN] + "..."
    if not shown_name.isprintable():
        shown_name = repr(shown_name)[1:-1]
    return f"{path}.{shown_name}" if path else shown_name


def no_character(text: str) -> str | None:
    """Return the first code point that QEMU's JSON parser refuses, as "U+D800", or None.

    These are halves of surrogate pairs and Unicode's noncharacters. QEMU's error reply to them names no command, so a
    QMP client closes the connection.
    """
    match = _NO_CHARACTER.search(text)
    return f"U+{ord(match[0]):04X}" if match is not None else None
