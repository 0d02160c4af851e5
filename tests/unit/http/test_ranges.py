"""Ranges of requests: what is asked for, or why it is refused."""

from __future__ import annotations

import pytest

from vbackup.http import ranges
from vbackup.http.ranges import BadRequestError, BeyondEndError, Span
from vbackup.http.served import MapQuery

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "query", "start", "length"),
    [
        ("bytes=0-0", {}, 0, 1),
        ("bytes=0-999", {}, 0, 1000),
        ("bytes=10-19", {}, 10, 10),
        ("bytes=990-", {}, 990, 10),
        ("bytes=-10", {}, 990, 10),
        (None, {"offset": "10", "length": "20"}, 10, 20),
        (None, {"offset": "10"}, 10, 990),
        (None, {"length": "20"}, 0, 20),
        (None, {"offset": "0", "length": "1000"}, 0, 1000),
    ],
)
def test_range_of_a_request(header: str | None, query: dict[str, str], start: int, length: int) -> None:
    span = ranges.span(header, query, SIZE)
    assert span == Span(start, length, is_part=True)
    assert span.content_range == f"{start}-{start + length - 1}"


def test_no_range_is_the_whole_disk() -> None:
    assert ranges.span(None, {}, SIZE) == Span(0, SIZE, is_part=False)
    assert ranges.span(None, {}, 0) == Span(0, 0, is_part=False)


@pytest.mark.parametrize(
    ("header", "query"),
    [
        ("bytes=0-1000", {}),
        ("bytes=1000-", {}),
        ("bytes=1000-1000", {}),
        ("bytes=5000-6000", {}),
        ("bytes=-1001", {}),
        ("bytes=-0", {}),
        ("bytes=0-9999999999999999999", {}),
        (None, {"offset": "1000"}),
        (None, {"offset": "1001", "length": "1"}),
        (None, {"length": "1001"}),
        (None, {"offset": "999", "length": "2"}),
        (None, {"offset": str(2**63 - 1), "length": str(2**63 - 1)}),
    ],
)
def test_range_that_the_disk_does_not_have(header: str | None, query: dict[str, str]) -> None:
    with pytest.raises(BeyondEndError, match="The disk has 1000 bytes"):
        ranges.span(header, query, SIZE)


@pytest.mark.parametrize(
    ("header", "query"),
    [
        ("", {}),
        ("bytes", {}),
        ("bytes=", {}),
        ("bytes=-", {}),
        ("bytes=a-b", {}),
        ("bytes=0-1,5-6", {}),
        ("bytes=9-8", {}),
        ("bytes=--1", {}),
        ("bytes=0x1-5", {}),
        ("items=0-1", {}),
        ("bytes=0-99999999999999999999", {}),
        ("bytes=\u0661-5", {}),
        ("bytes=0-1", {"offset": "1"}),
        (None, {"length": "0"}),
        (None, {"offset": "-1"}),
        (None, {"offset": ""}),
        (None, {"offset": "1e3"}),
        (None, {"offset": str(2**63)}),
        (None, {"size": "1"}),
    ],
)
def test_range_that_is_none(header: str | None, query: dict[str, str]) -> None:
    with pytest.raises(BadRequestError):
        ranges.span(header, query, SIZE)


def test_parameter_that_is_there_twice_is_refused() -> None:
    class Twice(dict[str, str]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(["offset", "offset"])

    with pytest.raises(BadRequestError, match="twice"):
        ranges.span(None, Twice(offset="1"), SIZE)


def test_query_of_a_map() -> None:
    assert ranges.map_query({}, SIZE) == MapQuery(0, None, 512, "delta", None)
    query = {"offset": "5", "length": "6", "page_size": "7", "kind": "between", "checkpoint": "c"}
    assert ranges.map_query(query, SIZE) == MapQuery(5, 6, 7, "between", "c")


@pytest.mark.parametrize("query", [{"page_size": "0"}, {"page_size": "65537"}, {"offset": "x"}, {"other": "1"}])
def test_query_of_a_map_that_is_none(query: dict[str, str]) -> None:
    with pytest.raises(BadRequestError):
        ranges.map_query(query, SIZE)
