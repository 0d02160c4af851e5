"""The words of messages about a user's JSON are short, and safe to print."""

from __future__ import annotations

from typing import Any

import pytest

from vbackup.qapi import wording


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", "a string"),
        (True, "a boolean"),
        (1, "an integer"),
        (1.0, "a floating-point number"),
        ([], "a list"),
        ({}, "an object"),
        (None, "null"),
        (b"x", "a bytes, which is not JSON"),
    ],
    ids=repr,
)
def test_kind_is_the_json_type(value: Any, kind: str) -> None:
    assert wording.kind(value) == kind


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ful", "'ful'"),
        ("x" * 60, repr("x" * 60)),
        ("x" * 61, repr("x" * 60 + "...")),
        ("\x1b[31m", r"'\x1b[31m'"),
        (True, "true"),
        (False, "false"),
        (2**64, "18446744073709551616"),
        (-(2**128), "a huge number"),
        ([1], "a list"),
        (None, "null"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_only_what_is_short_is_shown(value: Any, text: str) -> None:
    assert wording.shown(value) == text


def test_words_are_listed_in_quotes() -> None:
    assert wording.listed(["top", "full"]) == "'top', 'full'"
    assert wording.listed([]) == "none"


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("ful", " Did you mean 'full'?"),
        ("FULL", " Did you mean 'full'?"),
        ("job_id", " Did you mean 'job-id'?"),
        ("nothing like it", ""),
        ("full" * 20, ""),
        (5, ""),
    ],
)
def test_similar_words_are_suggested(word: Any, suggested: str) -> None:
    assert wording.similar(word, ["full", "top", "job-id"]) == suggested


@pytest.mark.parametrize(
    ("path", "name", "joined"),
    [
        ("", "actions", "actions"),
        ("actions[0].data", "sync", "actions[0].data.sync"),
        ("a", "\x1b[31m\n", r"a.\x1b[31m\n"),
        ("a", "x" * 61, f"a.{'x' * 60}..."),
    ],
)
def test_path_of_a_member_can_be_shown_on_a_terminal(path: str, name: str, joined: str) -> None:
    assert wording.below(path, name) == joined


@pytest.mark.parametrize(
    ("text", "code_point"),
    [
        ("käse \U0001f600\0", None),
        ("a\ud800b", "U+D800"),
        ("\udfff", "U+DFFF"),
        ("\ufdd0", "U+FDD0"),
        ("\ufffd", None),
        ("\ufffe", "U+FFFE"),
        ("\U0010ffff", "U+10FFFF"),
    ],
    ids=ascii,
)
def test_code_points_that_qemu_refuses_are_named(text: str, code_point: str | None) -> None:
    assert wording.no_character(text) == code_point
