"""Print results for people: sizes, times, tables, trees. Programs read --json instead.

rich could do it, but takes longer to import than a repository to be listed; only vbackup.cli.terminal uses it.
"""

from __future__ import annotations

import itertools
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vbackup import amounts

if TYPE_CHECKING:
    from datetime import datetime

#: Headings of the columns that are aligned to the right.
_RIGHT_ALIGNED = (
    *("SIZE", "COPIED", "VIRTUAL SIZE", "AGE", "BACKUPS", "DIRTY", "OLD", "NEW", "CHAIN", "CHAIN SIZE", "SHARED"),
    *("UNFINISHED", "PRUNING FREES", "CHANGED", "TO ZEROS", "FROM ZEROS", "UNDECIDED"),
    *("FREE", "OF", "GROWS A DAY", "FULL IN"),
    *("UNCHANGED", "READ", "ZEROS READ", "WRONG", "START", "LENGTH"),
)
_GAP = "  "
#: Least width of a table's last column, however narrow the terminal.
_MIN_COLUMNS = 16
#: Width of a terminal that does not report one, such as a serial line.
_UNKNOWN_COLUMNS = 80
#: Indentation of a cell on a separate line.
_OWN_LINE = "    "
#: Prefix of a branch, of the last branch, of what is below each of them, and of what depends on the line above.
_GUIDES = ("├─ ", "└─ ", "│  ", "   ", "↑ ")
_PLAIN_GUIDES = ("+- ", "`- ", "|  ", "   ", "^ ")

size, rate, age = amounts.size, amounts.rate, amounts.age


def plain(text: str) -> str:
    """Return the text with control characters escaped: a name in a repository can be meant to steer the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def local_time(time: datetime) -> str:
    """Return the time in the user's time zone, to the second."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def local_minute(time: datetime) -> str:
    """Return the time in the user's time zone, to the minute."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns under headings.

    On a terminal the last column is wrapped if it is too wide. Text without spaces that does not fit, such as a path or
    the name of a bitmap, gets the next line, so that it can be copied. A name in the first column that leaves no room
    for the others gets a separate line before them, and so does the last column after them if they leave none for it.
    """
    lines = [list(headings), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*lines)]
    widths[0] = first_columns = _first_columns([_width(row[0]) for row in lines], widths)
    before = sum(widths[:-1]) + len(_GAP) * len(widths[:-1])
    room = max(_columns() - before, _MIN_COLUMNS) if sys.stdout.isatty() else None
    is_crowded = room is not None and before + min(widths[-1], _MIN_COLUMNS) > _columns()
    for number, row in enumerate(lines):
        if _width(row[0]) > first_columns:
            print(row[0])
            row[0] = ""
        if is_crowded and row[-1].strip():
            first, *more = "", *wrapped(row[-1], max(_columns() - len(_OWN_LINE), _MIN_COLUMNS))
        else:
            first, *more = ("", row[-1]) if _needs_a_line(row[-1], room) else wrapped(row[-1], room)
        line = _GAP.join(map(_aligned, headings, [*row[:-1], first], widths)).rstrip()
        print(f"\x1b[1m{line}\x1b[0m" if number == 0 and _is_bold() else line)
        for text in more:
            print((" " * before if first else _OWN_LINE) + text)


def _first_columns(firsts: Sequence[int], widths: Sequence[int]) -> int:
    """Return the width of the first column: that of its widest text with which the others, or all but the last, fit."""
    if len(widths) == 1 or not sys.stdout.isatty():
        return widths[0]
    others, last = sum(widths[1:-1]) + len(_GAP) * (len(widths) - 1), min(widths[-1], _MIN_COLUMNS)
    for after in (last, 0):
        fitting = [width for width in firsts if width + others + after <= _columns()]
        if fitting:
            return max(firsts[0], *fitting)
    return firsts[0]


def _needs_a_line(text: str, room: int | None) -> bool:
    return room is not None and any(_width(word) > room for word in text.split())


def columns() -> int | None:
    """Return the width of the terminal that stdout is, or None: output that is no terminal has no width."""
    return max(_columns(), _MIN_COLUMNS) if sys.stdout.isatty() else None


def wrapped(text: str, room: int | None) -> list[str]:
    """Return the lines of a text that has this many columns of room; None is no limit. Only spaces are broken at."""
    if room is None or _width(text) <= room:
        return [text]
    import textwrap  # its patterns take longer to compile than a table to be printed

    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def labelled(label: str, text: str) -> None:
    """Print a text after its label; on a terminal it is folded, and the lines stand below each other.

    A word that does not fit there, such as a path, gets a line, so that it can be copied.
    """
    text, width = plain(text), columns()
    room = None if width is None else max(width - _width(label), _MIN_COLUMNS)
    if _needs_a_line(text, room):
        print(label.rstrip())
        indent, lines = _OWN_LINE, wrapped(text, None if width is None else max(width - len(_OWN_LINE), _MIN_COLUMNS))
    else:
        indent, (first, *lines) = " " * _width(label), wrapped(text, room)
        print((label + first).rstrip())
    for line in lines:
        print(indent + line)


def _aligned(heading: str, text: str, width: int) -> str:
    space = " " * (width - _width(text))
    return space + text if heading in _RIGHT_ALIGNED else text + space


def _width(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _columns() -> int:
    """Return the width of the terminal, or the one that the user set."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    return os.get_terminal_size(sys.stdout.fileno()).columns or _UNKNOWN_COLUMNS


def _is_bold() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def tree(entries: Sequence[tuple[str, str | None, str]]) -> None:
    """Print a tree: each entry is a key, the key of its parent, and its text.

    An entry whose parent is missing is a root. The only entry that depends on another is printed below it, with an
    arrow but no further indentation, so that a chain of any length fits; branches are only drawn where there are two.
    """
    known = {key for key, _, _ in entries}
    children: dict[str | None, list[tuple[str, str]]] = {}
    for key, parent, text in entries:
        children.setdefault(parent if parent in known else None, []).append((key, plain(text)))
    is_unicode = "utf" in (sys.stdout.encoding or "").lower()
    branch, last, line, blank, only = _GUIDES if is_unicode else _PLAIN_GUIDES
    # Not by recursion: a chain may be longer than Python's stack.
    waiting = [(text, key, "", "") for key, text in reversed(children.get(None, []))]
    while waiting:
        text, key, guide, indent = waiting.pop()
        print(guide + text)
        below = children.get(key, [])
        if len(below) == 1:
            [(key, text)] = below
            waiting.append((text, key, indent + only, indent))
            continue
        guides = itertools.chain(itertools.repeat((branch, line), len(below) - 1), [(last, blank)])
        waiting += reversed([(t, k, indent + here, indent + under) for (k, t), (here, under) in zip(below, guides)])
