"""The colours of the page: everybody has to be able to read them."""

from __future__ import annotations

import re

import pytest

from vbackup.overview.page_style import STYLE

_LIGHT, _DARK = (
    dict(re.findall(r"--(\w+):(#[0-9a-f]+)", part)) for part in STYLE.split("prefers-color-scheme:dark", 1)
)


def _luminance(colour: str) -> float:
    """As in WCAG 2.2, "relative luminance"."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_the_guidelines_do() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [_LIGHT, _DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["page", "card"])
def test_text_can_be_read(scheme: dict[str, str], ground: str) -> None:
    texts = {name: contrast(scheme[name], scheme[ground]) for name in ("ink", "soft", "ok", "warn", "crit", "link")}
    assert min(texts.values()) >= 4.5, texts


@pytest.mark.parametrize("scheme", [_LIGHT, _DARK], ids=["light", "dark"])
def test_shapes_can_be_seen(scheme: dict[str, str]) -> None:
    shapes = {name: contrast(scheme[name], scheme["card"]) for name in ("full", "inc", "bad")}
    assert min(shapes.values()) >= 3, shapes


def test_both_schemes_have_all_colours() -> None:
    assert _LIGHT.keys() == _DARK.keys()
    assert set(re.findall(r"var\(--(\w+)\)", STYLE)) <= _LIGHT.keys()
