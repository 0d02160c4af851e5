"""``vbackup schema``: what it prints is a schema that needs no other file, and every document has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from jsonschema import Draft202012Validator

from vbackup import schemas

if TYPE_CHECKING:
    from tests.conftest import Command


def test_every_schema_is_listed_with_a_title(command: Command) -> None:
    lines = command("schema").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == schemas.known()
    assert all(len(line.split()) > 2 for line in lines)
    listed = command("schema", "--json").document["schemas"]
    assert [f"{one['name']}  {one['title']}".split() for one in listed] == [line.split() for line in lines]


@pytest.mark.parametrize("words", [("vbackup.list/1",), ("list/1", "--json"), ("list",)], ids=" ".join)
def test_schema_is_printed_whole(command: Command, words: tuple[str, ...]) -> None:
    printed = command("schema", *words).document
    assert printed["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert printed["properties"]["schema"]["const"] == "vbackup.list/1"
    assert printed == schemas.load("vbackup.list/1")


@pytest.mark.parametrize(
    ("word", "hint"),
    [("bakup", "'backup'"), ("vbackup.list/2", "'vbackup.list/1'"), ("weather", "'vbackup schema' lists")],
)
def test_unknown_name_is_refused_with_the_nearest(command: Command, word: str, hint: str) -> None:
    refused = command("schema", word, status=2)
    assert f"No schema {word!r}" in refused.stderr
    assert hint in refused.stderr
    assert refused.stdout == ""


def test_no_file_can_be_named(command: Command) -> None:
    for word in ("common", "../setup", "", "vbackup.", "backup/1/", "backup-1"):
        command("schema", word, status=2)
