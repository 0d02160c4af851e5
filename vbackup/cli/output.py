"""Print results for people: sizes, times, tables, trees. Programs read --json instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from vbackup.errors import VbackupError

if TYPE_CHECKING:
    from rich.console import Console


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


def console() -> Console:
    """Rich's console on stdout; lines are not cut where there is no terminal to fit."""
    from rich.console import Console

    class Passing(Console):
        """Leaves a reader that has gone to vbackup.cli, whose exit status tells it; rich itself exits with 1."""

        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - rich calls this where it catches the BrokenPipeError

    return Passing(highlight=False, markup=False, width=None if sys.stdout.isatty() else 240)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns under headings, sizes to the right; the last column wraps where there is no room."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        last = heading == headings[-1]  # the one that gives way on a narrow terminal
        justify: Literal["right", "left"] = "right" if heading in ("SIZE", "COPIED") else "left"
        made.add_column(heading, justify=justify, no_wrap=not last, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(cell)) for cell in row))
    console().print(made)
