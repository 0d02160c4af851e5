"""Print results for people: sizes, times, tables, trees. Programs read --json instead.

rich would do it too, but its import alone takes longer than to list a repository; it is kept for the bars.
"""

from __future__ import annotations

import itertools
import os
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from vbackup.errors import VbackupError

#: Columns of these headings stand to the right.
_NUMBERS = ("SIZE", "COPIED")
_GAP = "  "
#: What the last column of a table keeps, however narrow the terminal.
_NARROWEST = 16
#: Of a terminal that does not tell its width, such as a serial line.
_UNKNOWN_COLUMNS = 80
#: What goes before a branch, before the last one, and below each of them.
_GUIDES = ("├── ", "└── ", "│   ", "    ")
_PLAIN_GUIDES = ("+-- ", "`-- ", "|   ", "    ")


def size(size_bytes: int) -> str:
    """1536 as "1.5 KiB"."""
    value, step = float(size_bytes), 1024
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < step:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= step
    return f"{value:.1f} TiB"


def plain(text: str) -> str:
    """The text with nothing in it that steers a terminal: names come from repositories, that is from anywhere."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def error_document(err: VbackupError) -> dict[str, Any]:
    """The error for programs."""
    return {
        "schema": "vbackup.error/1",
        "error": type(err).__name__,
        "message": str(err),
        "status": int(err.status),
        "evidence": err.evidence(),
    }


def local_time(time: datetime) -> str:
    """In the user's time zone, to the second."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns under headings; the last one is folded where it is too long for the terminal."""
    cells = [list(headings), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells)]
    before = sum(widths[:-1]) + len(_GAP) * len(widths[:-1])
    room = max(_columns() - before, _NARROWEST) if sys.stdout.isatty() else None
    for number, row in enumerate(cells):
        first, *more = _folded(row[-1], room)
        shown = [_aligned(*each) for each in zip(headings, [*row[:-1], first], widths)]
        line = _GAP.join(shown).rstrip()
        print(f"\x1b[1m{line}\x1b[0m" if number == 0 and _is_bold() else line)
        for rest in more:
            print(" " * before + rest)


def _folded(text: str, room: int | None) -> list[str]:
    if room is None or _width(text) <= room:
        return [text]
    return textwrap.wrap(text, room)


def _aligned(heading: str, text: str, width: int) -> str:
    space = " " * (width - _width(text))
    return space + text if heading in _NUMBERS else text + space


def _width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _columns() -> int:
    """Of the terminal, or as the user has set it."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    return os.get_terminal_size(sys.stdout.fileno()).columns or _UNKNOWN_COLUMNS


def _is_bold() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def tree(entries: Sequence[tuple[str, str | None, str]]) -> None:
    """Draw what stands on what: each entry is its key, the key of the one below it, and what is printed.

    An entry on one that is not there stands at the bottom.
    """
    known = {key for key, _, _ in entries}
    above: dict[str | None, list[tuple[str, str]]] = {}
    for key, below, text in entries:
        above.setdefault(below if below in known else None, []).append((key, plain(text)))
    branch, last, going_on, nothing = _GUIDES if "utf" in (sys.stdout.encoding or "").lower() else _PLAIN_GUIDES
    # Not by recursion: a chain may be longer than Python's stack.
    waiting = [(text, key, "", "") for key, text in reversed(above.get(None, []))]
    while waiting:
        text, key, guide, indent = waiting.pop()
        print(guide + text)
        children = above.get(key, [])
        marks = itertools.chain(itertools.repeat((branch, going_on), len(children) - 1), [(last, nothing)])
        waiting += reversed([(t, k, indent + mark, indent + below) for (k, t), (mark, below) in zip(children, marks)])
