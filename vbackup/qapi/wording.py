"""What is wrong with JSON that somebody wrote, in words: what was given, what would work.

vbackup.qapi.actions, vbackup.qapi.schema and vbackup.qapi.rules find it; TransactionError carries it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_PLANES = "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
_NO_CHARACTER = re.compile(f"[\ud800-\udfff\ufdd0-\ufdef{_PLANES}]")
#: Integers up to so many bits are written out; QEMU's have 64.
MAX_BITS = 128
#: Longer strings are cut in messages, and nothing similar to them is looked for.
LONGEST_SHOWN = 60

_KINDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def kind(value: Any) -> str:
    """The JSON type of a value; what Python type it is if it is no JSON."""
    return _KINDS.get(type(value), f"a {type(value).__name__}, which is not JSON")


def shown(value: Any) -> str:
    """The value if it is short, else what it is."""
    if isinstance(value, str):
        text = value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "..."
        return repr(text)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= MAX_BITS else "a huge number"
    return kind(value)


def listed(words: Collection[str]) -> str:
    """The words in quotes."""
    return ", ".join(f"'{word}'" for word in words) or "none"


def similar(word: Any, known: Collection[str]) -> str:
    """A sentence with the known words that look like ``word``; empty if none does."""
    if not isinstance(word, str) or len(word) > LONGEST_SHOWN:
        return ""
    import difflib  # for a message only

    near = difflib.get_close_matches(word.replace("_", "-").lower(), known, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""


def below(path: str, name: str) -> str:
    """The path of a member, which a terminal can show whatever its name is."""
    shown_name = name if len(name) <= LONGEST_SHOWN else name[:LONGEST_SHOWN] + "..."
    if not shown_name.isprintable():
        shown_name = repr(shown_name)[1:-1]
    return f"{path}.{shown_name}" if path else shown_name


def no_character(text: str) -> str | None:
    """The first code point that QEMU's JSON parser refuses, as "U+D800"; None if there is none.

    These are halves of surrogate pairs and Unicode's noncharacters. QEMU answers them with an error that names no
    command, at which a QMP client gives the connection up.
    """
    match = _NO_CHARACTER.search(text)
    return f"U+{ord(match[0]):04X}" if match is not None else None
