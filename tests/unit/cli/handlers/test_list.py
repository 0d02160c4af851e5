"""``vbackup list`` shows every backup, broken ones too, as a table, a tree or a document."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.builders import UUID, backup, commit, incremental
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command


ONE = backup(1)
TWO = incremental(2, ONE)


def test_empty_repository_is_told(command: Command, repository: Path) -> None:
    assert command("list", "-r", repository).stdout == f"No backups in {repository} yet.\n"
    document = command("list", "-r", repository, "--json").document
    assert (document["schema"], document["domains"], document["backups"]) == ("vbackup.list/1", [], [])


def test_list_has_a_line_for_each_backup(command: Command, filled: Path) -> None:
    lines = command("list", "-r", filled).stdout.splitlines()
    assert lines[0] == f"Domain web ({UUID})"
    assert [line.split()[:2] for line in lines[2:]] == [[ONE.id, "full"], [TWO.id, "incremental"]]
    assert "\x1b" not in "".join(lines)


def test_tree_shows_what_stands_on_what(command: Command, filled: Path) -> None:
    lines = command("list", "-r", filled, "--tree").stdout.splitlines()
    assert lines[1].startswith(ONE.id)
    assert lines[2].index(TWO.id) > 0


def test_list_as_a_document(command: Command, filled: Path) -> None:
    document = command("list", "-r", filled, "web", "--json").document
    assert document["domains"] == [{"uuid": UUID, "name": "web", "names": ["web"]}]
    assert document["broken"] == []
    assert [(one["id"], one["level"], one["parent"], one["disks"]) for one in document["backups"]] == [
        (ONE.id, "full", None, ["vda"]),
        (TWO.id, "incremental", ONE.id, ["vda"]),
    ]


def test_broken_backup_is_listed_and_is_status_six(command: Command, filled: Path) -> None:
    (filled / UUID / ONE.id / "manifest.json").write_text("{")
    outcome = command("list", "-r", filled, status=6)
    assert TWO.id in outcome.stdout
    assert f"vbackup: warning: Backup {ONE.id} is broken" in outcome.stderr
    broken = command("list", "-r", filled, "--json", status=6).document["broken"]
    assert {one["id"] for one in broken} == {ONE.id, TWO.id}


def test_two_domains_of_one_name_are_told_apart_by_uuid(command: Command, filled: Path) -> None:
    other = "f0000000-0000-4000-8000-000000000002"
    commit(Repository.open(filled), replace(ONE, domain_uuid=other))
    assert f"give the UUID: {UUID}, {other}" in command("list", "web", "-r", filled, status=4).stderr
    assert ONE.id in command("list", other, "-r", filled).stdout
