"""The repository comes from -r or the environment, and progress from --progress."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup, commit
from vbackup.cli import parser
from vbackup.cli.context import Context
from vbackup.errors import DomainNotFoundError
from vbackup.repository.repository import Repository
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
    Context(options, Stop()).print_document("vbackup.init/1", {"id": "käse", "path": Path("/x")})
    text = capsys.readouterr().out
    assert text.splitlines()[1] == '  "schema": "vbackup.init/1",'
    assert "käse" in text
    assert json.loads(text) == {"schema": "vbackup.init/1", "id": "käse", "path": "/x"}


# a name that several domains have had

OTHER = "f0000000-0000-4000-8000-000000000002"
DOMAIN = "<domain type='test'><name>web</name><uuid>{}</uuid><memory>1024</memory><os><type>hvm</type></os></domain>"


@pytest.fixture
def twice(filled: Path) -> Path:
    """A repository with two domains that have the name web."""
    commit(Repository.open(filled), backup(3, domain_uuid=OTHER))
    return filled


@pytest.mark.parametrize("uuid", [UUID, OTHER])
def test_domain_that_libvirt_has_now_is_taken(command: Command, twice: Path, tmp_path: Path, uuid: str) -> None:
    (tmp_path / "node.xml").write_text(f"<node>{DOMAIN.format(uuid)}</node>")
    shown = command("-c", f"test://{tmp_path}/node.xml", "show", "web", "-r", twice, "--json")
    assert shown.document["domain"]["uuid"] == uuid
    assert f"Several domains have had the name web. This is {uuid}, which libvirt has now" in shown.stderr


@pytest.mark.parametrize("uuid", ["f0000000-0000-4000-8000-000000000003", None], ids=["another", "no libvirt"])
def test_name_that_libvirt_does_not_decide_is_refused(
    command: Command, twice: Path, tmp_path: Path, uuid: str | None
) -> None:
    if uuid is not None:
        (tmp_path / "node.xml").write_text(f"<node>{DOMAIN.format(uuid)}</node>")
    for arguments in (("show", "web"), ("restore", "web", "--output", tmp_path / "out")):
        refused = command("-c", f"test://{tmp_path}/node.xml", *arguments, "-r", twice, status=4)
        assert f"give the UUID: {UUID}, {OTHER}" in refused.stderr


def test_words_name_domains_once_by_name_uuid_or_pattern(filled: Path) -> None:
    repository = Repository.open(filled)
    context = Context(parser.parse(["verify", "web", "-r", str(filled)]), Stop())
    assert context.uuids_of(repository, ["web", UUID, "w*"]) == [UUID]
    for word in ("nothing", "n*"):
        with pytest.raises(DomainNotFoundError, match=re.escape(word)):
            context.uuids_of(repository, [word])
