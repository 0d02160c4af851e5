"""Print results for people: sizes, times, tables, trees. Programs read --json instead.

rich could do it, but takes longer to import than a repository to be listed; only vbackup.cli.terminal uses it.
"""

from __future__ import annotations

import itertools
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from vbackup.errors import VbackupError

#: Headings of the columns that are aligned to the right.
_RIGHT_ALIGNED = ("SIZE", "COPIED")
_GAP = "  "
#: Least width of a table's last column, however narrow the terminal.
_MIN_COLUMNS = 16
#: Width of a terminal that does not report one, such as a serial line.
_UNKNOWN_COLUMNS = 80
#: Prefix of a branch, of the last branch, and of what is below each of them.
_GUIDES = ("├── ", "└── ", "│   ", "    ")
_PLAIN_GUIDES = ("+-- ", "`-- ", "|   ", "    ")


def size(size_bytes: int) -> str:
    """Return 1536 as "1.5 KiB"."""
    value, step = float(size_bytes), 1024
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < step:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= step
    return f"{value:.1f} TiB"


def plain(text: str) -> str:
    """Return the text with control characters escaped: a name in a repository can be meant to steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def error_document(err: VbackupError) -> dict[str, Any]:
    """Return the error as a JSON document."""
    return {
        "schema": "vbackup.error/1",
        "error": type(err).__name__,
        "message": str(err),
        "status": int(err.status),
        "evidence": err.evidence(),
    }


def local_time(time: datetime) -> str:
    """Return the time in the user's time zone, to the second."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns under headings; on a terminal the last column is wrapped if it is too wide."""
    lines = [list(headings), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*lines)]
    before = sum(widths[:-1]) + len(_GAP) * len(widths[:-1])
    room = max(_columns() - before, _MIN_COLUMNS) if sys.stdout.isatty() else None
    for number, row in enumerate(lines):
        first, *more = _wrapped(row[-1], room)
        line = _GAP.join(map(_aligned, headings, [*row[:-1], first], widths)).rstrip()
        print(f"\x1b[1m{line}\x1b[0m" if number == 0 and _is_bold() else line)
        for text in more:
            print(" " * before + text)


def _wrapped(text: str, room: int | None) -> list[str]:
    if room is None or _width(text) <= room:
        return [text]
    import textwrap  # its patterns take longer to compile than a table to be printed

    return textwrap.wrap(text, room) or [""]


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

    An entry whose parent is missing is a root.
    """
    known = {key for key, _, _ in entries}
    children: dict[str | None, list[tuple[str, str]]] = {}
    for key, parent, text in entries:
        children.setdefault(parent if parent in known else None, []).append((key, plain(text)))
    branch, last, line, blank = _GUIDES if "utf" in (sys.stdout.encoding or "").lower() else _PLAIN_GUIDES
    # Not by recursion: a chain may be longer than Python's stack.
    waiting = [(text, key, "", "") for key, text in reversed(children.get(None, []))]
    while waiting:
        text, key, guide, indent = waiting.pop()
        print(guide + text)
        below = children.get(key, [])
        guides = itertools.chain(itertools.repeat((branch, line), len(below) - 1), [(last, blank)])
        waiting += reversed([(t, k, indent + here, indent + under) for (k, t), (here, under) in zip(below, guides)])
