"""Draw the backups of a domain as SVG: a calendar, its chains, its changed data, and the room of a repository.

All shapes of a kind are one path: a page with 12,000 backups stays below 3 MB. Colours are classes of the page's
style sheet. Each picture has its content as a text alternative. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, tzinfo
from html import escape

from vbackup.amounts import size
from vbackup.overview.points import Point

#: Pixels of a day, and between two days.
_DAY, _STEP = 10, 12
_MIN_WEEKS, _MAX_WEEKS = 13, 53
#: How many backups the pictures of chains and changes show, the newest.
SHOWN = 90
_POINT_STEP = 12
_BARS = 48  # height
#: How many days without a backup are named in the text of a calendar.
_NAMED_DAYS = 5


def calendar(points: Sequence[Point], today: date, zone: tzinfo | None) -> str:
    """Return the last weeks, a column each, with the days that have backups.

    ``zone``: that of the days; None: the system's.
    """
    kinds: dict[date, str] = {}
    for point in points:
        day = _day(point.time, zone)
        kinds[day] = _worse(kinds.get(day), _kind(point))
    first = min((day for day in kinds if day <= today), default=today)
    weeks = min(max((_monday(today) - _monday(first)).days // 7 + 1, _MIN_WEEKS), _MAX_WEEKS)
    start = _monday(today) - timedelta(weeks=weeks - 1)
    cells: dict[str, list[str]] = {}
    for number in range((today - start).days + 1):
        day = start + timedelta(days=number)
        kind = kinds.get(day, "none" if day >= first else "before")
        x, y = number // 7 * _STEP, number % 7 * _STEP
        cells.setdefault(kind, []).append(f"M{x} {y}h{_DAY}v{_DAY}h-{_DAY}z")
    shapes = "".join(f'<path class="{kind}" d="{"".join(paths)}"/>' for kind, paths in sorted(cells.items()))
    return _svg(weeks * _STEP, 7 * _STEP, _calendar_text(kinds, max(start, first), today), shapes)


def _calendar_text(kinds: dict[date, str], first: date, today: date) -> str:
    days = [first + timedelta(days=number) for number in range((today - first).days + 1)]
    with_backup = [day for day in days if day in kinds]
    if not with_backup:
        return "Calendar: no backup yet" if not kinds else "Calendar: no backup in these weeks"
    text = f"Calendar: backups on {len(with_backup)} of the last {len(days)} days"
    without = [day for day in days if day not in kinds and day < today]
    if without:
        named = ", ".join(day.isoformat() for day in without[-_NAMED_DAYS:])
        text += f"; none on {named}" + (" and earlier days" if len(without) > _NAMED_DAYS else "")
    return text


def chains(points: Sequence[Point]) -> str:
    """Return the newest backups, each a mark in a row: squares stand alone, circles depend on a mark to the left."""
    shown = points[-SHOWN:]
    places = {point.id: number for number, point in enumerate(shown)}
    middle = 18
    links: list[str] = []
    marks: dict[str, list[str]] = {"full": [], "incremental": [], "bad": []}
    for number, point in enumerate(shown):
        x = number * _POINT_STEP + _POINT_STEP // 2
        if point.base is not None:
            links.append(_link(x, middle, places.get(point.base), number))
        square, circle = f"M{x - 4} {middle - 4}h8v8h-8z", f"M{x - 4} {middle}a4 4 0 1 0 8 0a4 4 0 1 0-8 0"
        marks[_kind(point)].append(square if point.is_whole else circle)
    shapes = f'<path class="link" d="{"".join(links)}"/>' if links else ""
    shapes += "".join(f'<path class="{kind}" d="{"".join(paths)}"/>' for kind, paths in marks.items() if paths)
    return _svg(max(len(shown), 1) * _POINT_STEP, middle + 8, _chains_text(shown), shapes)


def _link(x: int, middle: int, base: int | None, number: int) -> str:
    if base is None:  # it is not among those that are shown
        return f"M{x} {middle}h-{x}"
    if base == number - 1:
        return f"M{x} {middle}h-{_POINT_STEP}"
    back = (number - base) * _POINT_STEP
    return f"M{x} {middle}q-{back // 2} -{min(8 + back // 6, 2 * middle)} -{back} 0"


def _chains_text(points: Sequence[Point]) -> str:
    whole = [point for point in points if point.is_whole]
    if not points:
        return "Chains: no backup"
    text = f"Chains: {len(points)} backups, {len(whole)} of which depend on no other"
    bad = [point.id for point in points if point.is_bad]
    return f"{text}; damaged: {', '.join(bad[:_NAMED_DAYS])}" if bad else text


def changes(points: Sequence[Point]) -> str:
    """Return bars: how much had changed before each of the newest backups."""
    shown = points[-SHOWN:]
    largest = max((point.changed_bytes or 0 for point in shown), default=0)
    bars, fulls = [], []
    for number, point in enumerate(shown):
        x = number * _POINT_STEP + 1
        if point.changed_bytes is None:
            fulls.append(f"M{x} {_BARS}v-3h{_DAY}v3z")
        else:
            height = max(round(_BARS * point.changed_bytes / largest), 1) if largest else 1
            bars.append(f"M{x} {_BARS}v-{height}h{_DAY}v{height}z")
    shapes = "".join(
        f'<path class="{kind}" d="{"".join(paths)}"/>' for kind, paths in (("bar", bars), ("full", fulls)) if paths
    )
    return _svg(max(len(shown), 1) * _POINT_STEP, _BARS, _changes_text(shown), shapes)


def _changes_text(points: Sequence[Point]) -> str:
    changed = [point for point in points if point.changed_bytes is not None]
    if not changed:
        return "Changed data: no incremental backup yet"
    amounts = sorted(point.changed_bytes or 0 for point in changed)
    most = max(changed, key=lambda point: point.changed_bytes or 0)
    return (
        f"Changed data of {len(changed)} incremental backups: usually {size(amounts[len(amounts) // 2])}, at most"
        f" {size(amounts[-1])} in {most.id}"
    )


def room(free_bytes: int, size_bytes: int, backups_bytes: int | None) -> str:
    """Return a bar: how much of a filesystem backups take, other files take, and is free."""
    total = max(size_bytes, 1)
    used = max(size_bytes - free_bytes, 0)
    own = min(backups_bytes or 0, used)
    own_width, used_width = round(300 * own / total), round(300 * used / total)
    shapes = (
        f'<path class="none" d="M0 0h300v12h-300z"/><path class="other" d="M0 0h{used_width}v12h-{used_width}z"/>'
        f'<path class="bar" d="M0 0h{own_width}v12h-{own_width}z"/>'
    )
    text = f"Room: {size(own)} of {size(size_bytes)} are backups, {size(free_bytes)} are free"
    return _svg(300, 12, text, shapes)


def _svg(width: int, height: int, text: str, shapes: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(text)}">'
        f"{shapes}</svg>"
    )


def _kind(point: Point) -> str:
    if point.is_bad:
        return "bad"
    return "full" if point.is_whole else "incremental"


def _worse(first: str | None, second: str) -> str:
    order: Callable[[str], int] = ("incremental", "full", "bad").index
    return second if first is None else max(first, second, key=order)


def _day(time: datetime, zone: tzinfo | None) -> date:
    return time.astimezone(zone).date()


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())
