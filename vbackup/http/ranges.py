"""Which bytes a request is about: a Range header as imageio has it, or offset and length in the URL as KubeVirt has.

A range that reaches beyond the end of the disk is refused, which RFC 9110 (14.1.2) would cut: a client that asks for it
takes the disk for another size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vbackup.fields import MAX_SIZE_BYTES
from vbackup.http.served import MapQuery

MAX_PAGE_SIZE, DEFAULT_PAGE_SIZE = 65536, 512
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{1,19})-(?P<last>[0-9]{1,19})?", re.ASCII)
_SUFFIX = re.compile(r"bytes=-(?P<length>[0-9]{1,19})", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


class BadRequestError(Exception):
    """A request that cannot be understood (400)."""


class BeyondEndError(Exception):
    """A range that the disk does not have (416)."""


@dataclass(frozen=True)
class Span:
    """A range of a disk."""

    start_bytes: int
    length_bytes: int
    is_part: bool  #: a range was asked for, so the answer is 206

    @property
    def content_range(self) -> str:
        """First and last byte, as Content-Range has them."""
        return f"{self.start_bytes}-{self.start_bytes + self.length_bytes - 1}"


def span(header: str | None, query: Mapping[str, str], size_bytes: int) -> Span:
    """Return the range that a request for data asks for. Raises BadRequestError, BeyondEndError."""
    _only(query, "offset", "length")
    if header is not None and query:
        raise BadRequestError("Give a range either as a header or in the URL.")
    if header is None and not query:
        return Span(0, size_bytes, is_part=False)
    if header is not None:
        start, length = _of_header(header, size_bytes)
    else:
        start = _number(query, "offset", 0)
        length = _number(query, "length", size_bytes - start)
    if not 0 <= start < size_bytes or length > size_bytes - start:
        raise BeyondEndError(f"The disk has {size_bytes} bytes.")
    if length < 1:
        raise BadRequestError("A range has at least one byte.")
    return Span(start, length, is_part=True)


def map_query(query: Mapping[str, str], size_bytes: int) -> MapQuery:
    """Return which extents a request asks for. Raises BadRequestError, BeyondEndError."""
    _only(query, "offset", "length", "page_size", "kind", "checkpoint")
    page_size = _number(query, "page_size", DEFAULT_PAGE_SIZE)
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise BadRequestError(f"page_size is from 1 to {MAX_PAGE_SIZE}.")
    offset = _number(query, "offset", 0)
    length = _number(query, "length", 0) if "length" in query else None
    if offset + (length or 0) > size_bytes:
        raise BeyondEndError(f"The disk has {size_bytes} bytes.")
    return MapQuery(
        offset_bytes=offset,
        length_bytes=length,
        max_results=page_size,
        kind=query.get("kind", "delta"),
        checkpoint=query.get("checkpoint"),
    )


def _of_header(header: str, size_bytes: int) -> tuple[int, int]:
    match = _RANGE.fullmatch(header.strip())
    if match is not None:
        first = int(match["first"])
        last = size_bytes - 1 if match["last"] is None else int(match["last"])
        if match["last"] is not None and last < first:
            raise BadRequestError("The range ends before it begins.")
        return first, last - first + 1
    match = _SUFFIX.fullmatch(header.strip())
    if match is None:
        raise BadRequestError("The Range header has to be one range of bytes, such as bytes=0-1048575.")
    return size_bytes - int(match["length"]), int(match["length"])


def _only(query: Mapping[str, str], *known: str) -> None:
    names = list(query)  # of a multidict: each as often as it is given
    for name in names:
        if name not in known or names.count(name) > 1:
            raise BadRequestError(f"{name[:50]!r} is unknown or given twice; the parameters are {', '.join(known)}.")


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or int(text) > MAX_SIZE_BYTES:
        raise BadRequestError(f"{name} has to be a number of bytes from 0 to {MAX_SIZE_BYTES}.")
    return int(text)
