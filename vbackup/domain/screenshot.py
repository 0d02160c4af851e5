"""Pictures of a guest's screen: libvirt's as PNG, and whether there is anything on it. Does no I/O.

QEMU from 7.1 on makes PNG (libvirt 9.0 and later let it), others PPM. PNG: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from vbackup.errors import MalformedError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PPM = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s", re.ASCII)
#: More than any screen has: a picture of that size is not decoded.
_MAX_BYTES = 256 * 1024 * 1024
#: Number of bytes of a pixel by the colour type of the PNG, with 8 bits for each colour.
_PIXEL_BYTES = {0: 1, 2: 3, 4: 2, 6: 4}


def png(data: bytes) -> bytes:
    """Return a picture as PNG. Raises MalformedError if it is neither PNG nor PPM."""
    if data.startswith(_SIGNATURE):
        return data
    header = _PPM.match(data)
    if header is None:
        raise MalformedError("The screenshot is neither a PNG nor a PPM picture.")
    width, height = int(header[1]), int(header[2])
    pixels = memoryview(data)[header.end() :]
    row_bytes = 3 * width
    if not width or len(pixels) != row_bytes * height:
        raise MalformedError("The screenshot is a PPM picture of the wrong size.")
    rows = b"".join(b"\0" + pixels[start : start + row_bytes] for start in range(0, len(pixels), row_bytes))
    return b"".join(
        [
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(rows)),
            _chunk(b"IEND", b""),
        ]
    )


def is_one_colour(picture: bytes) -> bool:
    """Return True if all pixels of a PNG are the same: the screen is off, or nothing was ever drawn on it.

    Every row is compared with the one that a picture of one colour would have with the same filter. A picture that is
    not as QEMU makes it (8 bits, not interlaced) counts as one with something on it.
    """
    try:
        width, pixel_bytes, rows = _rows(picture)
    except (MalformedError, struct.error, zlib.error):
        return False
    above = bytes(pixel_bytes)
    colour: bytes | None = None
    for kind, row in rows:
        first = bytes(
            (byte + _prediction(kind, left=0, above=over, corner=0)) % 256
            for byte, over in zip(row[:pixel_bytes], above)
        )
        if colour not in (None, first) or row != _filtered(kind, first, above, width):
            return False
        colour = above = first
    return True


def _filtered(kind: int, pixel: bytes, above: bytes, width: int) -> bytes:
    """Return a row of one colour below a row of one colour, as the filter encodes it."""

    def encoded(lefts: bytes, corners: bytes) -> bytes:
        return bytes(
            (byte - _prediction(kind, left=left, above=over, corner=corner)) % 256
            for byte, left, over, corner in zip(pixel, lefts, above, corners)
        )

    nothing = bytes(len(pixel))
    return encoded(nothing, nothing) + encoded(pixel, above) * (width - 1)


def _prediction(kind: int, *, left: int, above: int, corner: int) -> int:
    """Return what a filter subtracts from a byte."""
    if kind == 4:  # noqa: PLR2004 - Paeth
        estimate = left + above - corner
        return min((left, above, corner), key=lambda one: abs(estimate - one))
    return (0, left, above, (left + above) // 2)[kind]


def _rows(picture: bytes) -> tuple[int, int, list[tuple[int, bytes]]]:
    """Return the width, the size of a pixel, and filter and bytes of each row."""
    if not picture.startswith(_SIGNATURE):
        raise MalformedError("not a PNG picture")
    chunks = list(_chunks(picture))
    header = next((data for kind, data in chunks if kind == b"IHDR"), b"")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    pixel_bytes = _PIXEL_BYTES.get(colour, 0)
    row_bytes = 1 + width * pixel_bytes
    if depth != 8 or interlace or not pixel_bytes or row_bytes * height > _MAX_BYTES:  # noqa: PLR2004 - bits
        raise MalformedError("a PNG picture of another kind")
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    rows = zlib.decompressobj().decompress(packed, row_bytes * height)
    if len(rows) != row_bytes * height or any(kind > 4 for kind in rows[::row_bytes]):  # noqa: PLR2004 - filters
        raise MalformedError("a PNG picture that is not complete")
    return width, pixel_bytes, [(rows[at], rows[at + 1 : at + row_bytes]) for at in range(0, len(rows), row_bytes)]


def _chunks(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, at)
        yield kind, picture[at + 8 : at + 8 + length]
        at += length + 12


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
