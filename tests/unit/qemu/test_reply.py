"""A QMP reply in text form is a result, an error of QEMU, or malformed."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_fields import json_values
from vbackup.errors import MalformedError, QmpError
from vbackup.qemu.reply import parse


@pytest.mark.parametrize("value", [{}, [], {"a": 1}, "text", 0, False, None])
def test_return_is_returned(value: object) -> None:
    assert parse("query-x", json.dumps({"return": value, "id": "libvirt-12"})) == value


def test_error_reply_is_raised_with_class_and_description() -> None:
    reply = {"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}, "id": "libvirt-1"}
    with pytest.raises(QmpError) as caught:
        parse("x", json.dumps(reply))
    assert (caught.value.command, caught.value.error_class) == ("x", "CommandNotFound")
    assert caught.value.description == "The command x has not been found"
    assert "QEMU refused x" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        "{}",
        '{"error": {}}',
        '{"error": "text"}',
        '{"error": {"class": "C"}}',
        "[" * 100_000,
    ],
)
def test_no_reply_is_malformed(text: str) -> None:
    with pytest.raises(MalformedError):
        parse("query-x", text)


@given(json_values)
def test_any_json_is_a_reply_or_malformed(value: object) -> None:
    with suppress(MalformedError, QmpError):
        parse("query-x", json.dumps(value))


@given(st.text())
def test_any_text_is_a_reply_or_malformed(text: str) -> None:
    with suppress(MalformedError, QmpError):
        parse("query-x", text)
