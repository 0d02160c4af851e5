"""Plots as SVG text: bars for contenders, lines for growth. Plain enough to need no library, and for any browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _BAR = 760, 26
_LABELS, _VALUES = 260, 70
_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 380, 230, 2
_INK, _SOFT, _GRID = "#24292f", "#57606a", "#d8dee4"
_COLOURS = ("#0a6fb8", "#c2410c", "#15803d", "#7e22ce", "#a16207")
_STYLE = 'font-family="sans-serif" font-size="13"'


def bars(title: str, values: Mapping[str, float], *, unit: str, ours: str) -> str:
    """One bar a name, the shortest first; ``ours`` stands out."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    longest = max(values.values()) or 1
    height = 50 + _BAR * len(ordered)
    parts = [_text(10, 24, title, weight="bold")]
    for number, (name, value) in enumerate(ordered):
        top = 40 + number * _BAR
        length = (_WIDTH - _LABELS - _VALUES) * value / longest
        colour = _COLOURS[0] if name.startswith(ours) else "#9aa4b0"
        parts += [
            _text(_LABELS - 8, top + 15, name, anchor="end"),
            f'<rect x="{_LABELS}" y="{top + 2}" width="{max(length, 1):.1f}" height="{_BAR - 8}" fill="{colour}"/>',
            _text(_LABELS + length + 6, top + 15, f"{value:.2f} {unit}", colour=_SOFT),
        ]
    return _svg(_WIDTH, height, parts)


def panels(title: str, made: Mapping[str, Mapping[str, Points]]) -> str:
    """Small plots side by side, one a series of measures: by its title the lines by their names."""
    rows = math.ceil(len(made) / _COLUMNS)
    parts = [_text(10, 24, title, weight="bold")]
    for number, (name, lines) in enumerate(made.items()):
        left, top = number % _COLUMNS * _PANEL_WIDTH, 40 + number // _COLUMNS * _PANEL_HEIGHT
        parts.append(f'<g transform="translate({left},{top})">{"".join(_panel(name, lines))}</g>')
    return _svg(_PANEL_WIDTH * _COLUMNS, 50 + rows * _PANEL_HEIGHT, parts)


def _panel(title: str, lines: Mapping[str, Points]) -> list[str]:
    left, top, right, bottom = 56, 30, _PANEL_WIDTH - 20, _PANEL_HEIGHT - 36
    most_x = max((x for points in lines.values() for x, _ in points), default=1) or 1
    most_y = _round_up(max((y for points in lines.values() for _, y in points), default=1))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / most_x, bottom - (bottom - top) * y / most_y

    parts = [_text(left, 18, title)]
    for step in range(5):
        _, at = place(0, most_y * step / 4)
        parts += [
            f'<line x1="{left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="{_GRID}"/>',
            _text(left - 6, at + 4, f"{most_y * step / 4:.3g}", anchor="end", colour=_SOFT, size=11),
        ]
    for x in sorted({x for points in lines.values() for x, _ in points}):
        parts.append(_text(place(x, 0)[0], bottom + 15, f"{x:g}", anchor="middle", colour=_SOFT, size=11))
    for number, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [place(x, y) for x, y in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        if len(lines) > 1:
            # Where growth leaves room.
            parts.append(_text(left + 8, top + 14 * (number + 1), name, colour=colour, size=11))
    return parts


def _round_up(value: float) -> float:
    """To a number that four steps of a grid divide well."""
    if value <= 0:
        return 1
    scale: float = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 4, 8, 10) if step * scale >= value * 0.999)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK, size: int = 13, weight: str = "normal"
) -> str:
    style = f'text-anchor="{anchor}" fill="{colour}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {_STYLE}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])
