"""Untrusted JSON is read by type; an error is one sentence that names the member."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.errors import ChainError, MalformedError
from vbackup.fields import MAX_SIZE_BYTES, Fields, objects, parse_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=8,
)


def fields(value: Any) -> Fields:
    return Fields(value, "reply", MalformedError)


def test_members_have_their_types() -> None:
    one = fields({"t": "x", "b": False, "i": 7, "n": 1.5, "o": {"t": "y"}, "l": [{"t": "z"}]})
    assert (one.text("t"), one.boolean("b"), one.integer("i"), one.number("n")) == ("x", False, 7, 1.5)
    assert one.object("o").text("t") == "y"
    assert [entry.text("t") for entry in one.objects("l")] == ["z"]
    assert fields({"s": ["x", "y"]}).strings("s") == {"x", "y"}


def test_unknown_members_are_tolerated() -> None:
    assert fields({"t": "x", "new": [1, 2]}).text("t") == "x"


def test_null_is_as_good_as_missing() -> None:
    one = fields({"t": None})
    assert "t" not in one
    assert one.optional_text("t") is None
    assert one.strings("t") == frozenset()


@pytest.mark.parametrize(
    ("read", "value", "said"),
    [
        (lambda one: one.text("m"), 7, "reply.m should be a string, but is an integer"),
        (lambda one: one.text("m"), None, "reply.m should be a string, but is missing"),
        (lambda one: one.optional_text("m"), [], "reply.m should be a string, but is a list"),
        (lambda one: one.boolean("m"), 1, "reply.m should be a boolean, but is an integer"),
        (lambda one: one.integer("m"), "1", "reply.m should be an integer, but is a string"),
        (lambda one: one.integer("m"), 1.0, "reply.m should be an integer, but is a number"),
        (lambda one: one.integer("m"), True, "reply.m should be an integer from 0"),
        (lambda one: one.integer("m"), -1, "reply.m should be an integer from 0"),
        (lambda one: one.integer("m"), MAX_SIZE_BYTES + 1, "reply.m should be an integer from 0"),
        (lambda one: one.number("m"), -0.1, "reply.m should be a number"),
        (lambda one: one.number("m"), "1", "reply.m should be a number, but is a string"),
        (lambda one: one.number("m"), True, "reply.m should be a number"),
        (lambda one: one.number("m"), float("nan"), "reply.m should be a number"),
        (lambda one: one.number("m"), float("inf"), "reply.m should be a number"),
        (lambda one: one.number("m"), 10**400, "reply.m should be a number"),
        (lambda one: one.object("m"), [], "reply.m should be an object, but is a list"),
        (lambda one: one.strings("m"), "x", "reply.m should be a list, but is a string"),
        (lambda one: one.strings("m"), ["x", 1], r"reply.m\[1\] should be a string"),
        (lambda one: list(one.objects("m")), {}, "reply.m should be a list, but is an object"),
        (lambda one: list(one.objects("m")), [{}, 1], r"reply.m\[1\] should be an object"),
    ],
    ids=lambda value: "" if callable(value) else str(value)[:30],
)
def test_wrong_member_is_named(read: Any, value: Any, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        read(fields({"m": value}))


@pytest.mark.parametrize("value", [None, [], "text", 7, True])
def test_only_an_object_has_members(value: Any) -> None:
    with pytest.raises(MalformedError, match="reply should be an object"):
        fields(value)


def test_list_of_objects_names_the_entry() -> None:
    with pytest.raises(ChainError, match=r"reply\[1\].id should be a string, but is missing"):
        [entry.text("id") for entry in objects([{"id": "a"}, {}], "reply", ChainError)]


def test_error_is_of_the_class_that_was_given() -> None:
    with pytest.raises(ChainError):
        Fields({}, "manifest", ChainError).text("id")


@given(json_values)
def test_any_json_is_read_or_refused(value: Any) -> None:
    for read in (Fields.text, Fields.boolean, Fields.integer, Fields.number, Fields.object, Fields.optional_text):
        with suppress(MalformedError):
            read(fields(value), "a")
    with suppress(MalformedError):
        list(fields(value).objects("a"))


def test_json_number_of_absurd_length_is_refused() -> None:
    assert parse_json("[1, -2, " + "9" * 1000 + "]")[:2] == [1, -2]
    with pytest.raises(ValueError, match="a number of 1001 digits"):
        parse_json("9" * 1001)
