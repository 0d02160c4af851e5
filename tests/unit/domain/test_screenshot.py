"""Pictures are PNG in the end, and one of a single colour is told from one with something on it, however filtered."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.domain import screenshot
from vbackup.errors import MalformedError

WIDTH, HEIGHT = 5, 4
BLACK = bytes(3)


def paeth(left: int, above: int, corner: int) -> int:
    """As the specification has it."""
    estimate = left + above - corner
    distances = [(abs(estimate - one), order, one) for order, one in enumerate((left, above, corner))]
    return min(distances)[2]


def encoded(rows: list[bytes], kinds: list[int]) -> bytes:
    """A PNG of these rows of RGB pixels, each with its own filter."""
    packed = b""
    above = bytes(len(rows[0]))
    for row, kind in zip(rows, kinds):
        packed += bytes([kind])
        for at, byte in enumerate(row):
            left, corner = (row[at - 3], above[at - 3]) if at >= 3 else (0, 0)
            over = above[at]
            packed += bytes([(byte - [0, left, over, (left + over) // 2, paeth(left, over, corner)][kind]) % 256])
        above = row
    header = struct.pack(">IIBBBBB", len(rows[0]) // 3, len(rows), 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


kinds = st.lists(st.integers(0, 4), min_size=HEIGHT, max_size=HEIGHT)
pixels = st.binary(min_size=3, max_size=3)


@given(pixels, kinds)
def test_one_colour_is_recognized_with_every_filter(pixel: bytes, kinds: list[int]) -> None:
    assert screenshot.is_one_colour(encoded([pixel * WIDTH] * HEIGHT, kinds))


@given(pixels, kinds, st.integers(0, WIDTH * HEIGHT - 1), pixels)
def test_one_other_pixel_is_found(pixel: bytes, kinds: list[int], at: int, other: bytes) -> None:
    picture = bytearray(pixel * WIDTH * HEIGHT)
    picture[3 * at : 3 * at + 3] = other
    rows = [bytes(picture[start : start + 3 * WIDTH]) for start in range(0, len(picture), 3 * WIDTH)]
    assert screenshot.is_one_colour(encoded(rows, kinds)) == (pixel == other)


def test_ppm_becomes_png_and_png_stays() -> None:
    rows = [bytes(range(15)), BLACK * WIDTH]
    made = screenshot.png(b"P6\n5 2\n255\n" + b"".join(rows))
    assert made == encoded(rows, [0, 0])
    assert screenshot.png(made) is made


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"P6\n5 2\n255\n123", b"P6\n0 2\n255\n", b"P6\n99999 99999\n255\n", b"P5\n1 1\n255\n1"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError, match="screenshot"):
        screenshot.png(data)


@pytest.mark.parametrize("length", [0, 8, 20, 40, 60])
def test_picture_that_cannot_be_read_counts_as_one_with_something_on_it(length: int) -> None:
    assert not screenshot.is_one_colour(encoded([BLACK * WIDTH] * HEIGHT, [0] * HEIGHT)[:length])


def test_filter_that_does_not_exist_and_a_bomb() -> None:
    good = encoded([BLACK] * 1, [0])
    bad = good.replace(zlib.compress(b"\0" + BLACK), zlib.compress(b"\x09" + BLACK))
    assert not screenshot.is_one_colour(bad)
    huge = struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0)
    assert not screenshot.is_one_colour(good.replace(struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), huge))
