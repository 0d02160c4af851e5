"""The repository comes from -r or the environment, and progress from --progress."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup
from vbackup.cli import parser
from vbackup.cli.context import Context
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command


ONE = backup(1)


@pytest.mark.parametrize(
    "arguments",
    [("init",), ("list",), ("show", "web"), ("backup", "web"), ("restore", "web", "--output", "x"), ("recover", "web")],
    ids=" ".join,
)
def test_missing_repository_is_status_two(command: Command, arguments: tuple[str, ...]) -> None:
    assert "use -r DIR, or set VBACKUP_REPOSITORY" in command(*arguments, status=2).stderr


def test_repository_of_the_environment_is_taken(
    command: Command, monkeypatch: pytest.MonkeyPatch, filled: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("VBACKUP_REPOSITORY", os.fspath(filled))
    assert ONE.id in command("list", "--all").stdout
    command("list", "-r", tmp_path, status=7)


def test_events_are_json_lines_on_stderr(command: Command, filled: Path) -> None:
    (filled / UUID / ONE.id / "manifest.json").write_text("{")
    outcome = command("list", "-r", filled, "--progress", "json", status=6)
    events = [json.loads(line) for line in outcome.stderr.splitlines()]
    assert {event["event"] for event in events} == {"warning"}


def test_document_begins_with_its_schema_and_keeps_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser.parse(["list", "--json"])
    Context(options, Stop()).print_document("vbackup.test/1", {"name": "käse", "path": Path("/x")})
    text = capsys.readouterr().out
    assert text.splitlines()[1] == '  "schema": "vbackup.test/1",'
    assert "käse" in text
    assert json.loads(text) == {"schema": "vbackup.test/1", "name": "käse", "path": "/x"}
