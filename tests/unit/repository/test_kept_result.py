"""A kept result: written as a whole, and what cannot be read counts as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.fields import Fields
from vbackup.repository import kept_result

SCHEMA = "vbackup.test/1"


def number(fields: Fields) -> int:
    return fields.integer("number")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert kept_result.read(path, SCHEMA, number) is None
    for value in (1, 2):
        kept_result.write(path, SCHEMA, {"number": value})
        assert kept_result.read(path, SCHEMA, number) == value
    assert json.loads(path.read_text()) == {"schema": SCHEMA, "number": 2}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"schema": "vbackup.test/2", "number": 1}', b'{"number": 1}'],
)
def test_what_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    assert kept_result.read(tmp_path / "result.json", SCHEMA, number) is None


def test_what_the_parser_refuses_is_none(tmp_path: Path) -> None:
    kept_result.write(tmp_path / "result.json", SCHEMA, {"number": "one"})
    assert kept_result.read(tmp_path / "result.json", SCHEMA, number) is None


def test_link_and_pipe_are_not_read(tmp_path: Path) -> None:
    kept_result.write(tmp_path / "real.json", SCHEMA, {"number": 1})
    (tmp_path / "result.json").symlink_to("real.json")
    assert kept_result.read(tmp_path / "result.json", SCHEMA, number) is None


def test_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"write {tmp_path}/none/result.json"):
        kept_result.write(tmp_path / "none" / "result.json", SCHEMA, {"number": 1})


def test_error_of_a_programmer_is_not_hidden(tmp_path: Path) -> None:
    kept_result.write(tmp_path / "result.json", SCHEMA, {"number": 1})

    def broken(_fields: Fields) -> int:
        raise KeyError("number")

    with pytest.raises(KeyError):
        kept_result.read(tmp_path / "result.json", SCHEMA, broken)
