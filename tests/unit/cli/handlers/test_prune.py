"""``vbackup prune`` prints a reason for every backup, and ends with a status that tells what happened."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import NOON, UUID, backup, commit, incremental
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

OTHER = "f0000000-0000-4000-8000-000000000002"
NEVER = ("--consolidate", "never")
ONE = backup(1)
TWO = incremental(2, ONE)
THREE = replace(backup(3), time=NOON - timedelta(days=1))


@pytest.fixture
def two_domains(filled: Path) -> Path:
    """Three backups of web, of which two can go, and two of db."""
    repository = Repository.open(filled)
    commit(repository, THREE)
    for one in (ONE, THREE):
        commit(repository, replace(one, domain_uuid=OTHER, domain_name="db"))
    return filled


def left(repository: Path, uuid: str = UUID) -> list[str]:
    return [one.id for one in Repository.open(repository).catalogue(uuid).history.backups]


def test_every_backup_has_a_line_with_a_reason(command: Command, two_domains: Path) -> None:
    text = command("prune", "web", "--keep-last", "1", "-r", two_domains, *NEVER).stdout
    heading, columns, *lines, summary = text.splitlines()
    assert heading == f"Domain web ({UUID})"
    assert columns.split() == ["ID", "TIME", "SIZE", "ACTION", "WHY"]
    assert [line.split()[0] for line in lines] == [ONE.id, TWO.id, THREE.id]
    assert "keep    last #1" in lines[1]
    assert f"keep    {TWO.id} depends on it" in lines[0]
    assert lines[2].endswith("keep    newest, the next incremental of vda starts from it")
    assert summary.startswith("Removed 0 of 3 backups; ")


def test_dry_run_prints_the_same_lines_and_removes_nothing(command: Command, two_domains: Path) -> None:
    words = ("prune", "--all", "--keep-last", "1", "-r", two_domains, *NEVER)
    shown = command(*words, "--dry-run").stdout
    assert "Would remove" in shown
    assert len(left(two_domains, OTHER)) == 2
    done = command(*words).stdout
    assert left(two_domains, OTHER) == [ONE.id, THREE.id]

    def table(text: str) -> list[str]:
        return [line for line in text.splitlines() if "  " in line]

    assert table(shown) == table(done)


def test_prune_as_a_document(command: Command, two_domains: Path) -> None:
    document = command("prune", "w*", "db", "--keep-hourly", "9", "-r", two_domains, *NEVER, "--json").document
    assert document["schema"] == "vbackup.prune/1"
    assert document["dry_run"] is False
    assert document["failed"] == []
    web, db = document["domains"]
    assert (web["domain"], db["domain"]["name"]) == ({"name": "web", "uuid": UUID}, "db")
    assert (web["kept"], web["removed"], web["freed_bytes"], web["consolidation"]) == (3, 0, 0, None)
    line = web["backups"][0]
    assert line.pop("size_bytes") > 0
    assert line == {
        "id": ONE.id,
        "time": "2026-11-23T13:00:00.000000Z",
        "level": "full",
        "action": "keep",
        "reasons": ["hourly #2"],
        "heirs": [],
    }


def test_quiet_is_quiet_but_for_a_dry_run(command: Command, two_domains: Path) -> None:
    words = ("prune", "web", "--keep-last", "1", "-r", two_domains, *NEVER, "-q")
    assert "Would remove" in command(*words, "--dry-run").stdout
    outcome = command(*words)
    assert (outcome.stdout, outcome.stderr) == ("", "")


def test_empty_repository_is_told(command: Command, repository: Path) -> None:
    assert "No domains in" in command("prune", "--all", "--keep-last", "1", "-r", repository, *NEVER).stdout


def test_one_busy_domain_of_two_does_not_stop_the_other(command: Command, two_domains: Path) -> None:
    with Repository.open(two_domains).lock(UUID):
        outcome = command("prune", "--all", "--keep-last", "1", "-r", two_domains, *NEVER, status=3)
        assert "web: Another vbackup is working on domain web" in outcome.stderr
        assert outcome.stderr.endswith("vbackup: 1 of 2 domains failed.\n")
        assert "Domain db" in outcome.stdout
        document = command("prune", "--all", "--keep-last", "1", "-r", two_domains, *NEVER, "--json", status=3).document
        assert [(one["domain"]["name"], one["error"]["status"]) for one in document["failed"]] == [("web", 8)]
        command("prune", "web", "--keep-last", "1", "-r", two_domains, *NEVER, status=8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["web"], "No rule given"),
        (["--keep-last", "1"], "Give a domain, or --all"),
        (["web", "--all", "--keep-last", "1"], "not both"),
        (["", "--keep-last", "1"], "The domain name is empty"),
        (["web", "--domain", "db", "--keep-last", "1"], "Two domains given"),
        (["web", "--keep-last", "0"], "from 1 to 1000000"),
        (["web", "--keep-daily", "-3"], "--keep-daily"),
        (["web", "--keep-daily", "1.5"], "from 1 to 1000000"),
        (["web", "--keep-yearly", "9" * 30], "from 1 to 1000000"),
        (["web", "--keep-weekly", "two"], "from 1 to 1000000"),
        (["web", "--keep-fortnightly", "1"], "Unrecognized arguments: --keep-fortnightly"),
        (["web", "--keep-within", "soon"], "'soon' is not a time like 36h"),
        (["web", "--keep-within", "0d"], "not all 0"),
        (["web", "--keep-within", "6m1y"], "in this order"),
        (["web", "--max-chain", "0", "--keep-last", "1"], "from 1 to 1000"),
        (["web", "--consolidate", "magic", "--keep-last", "1"], "invalid choice: 'magic'"),
        (["web", "--remove", ONE.id, "--keep-last", "1"], "not both"),
        (["--all", "--remove", ONE.id], "--remove needs one domain"),
        (["web", "db", "--remove", ONE.id], "--remove needs one domain"),
    ],
)
def test_bad_input_is_a_usage_error_and_removes_nothing(
    command: Command, two_domains: Path, words: list[str], said: str
) -> None:
    assert said in command("prune", *words, "-r", two_domains, status=2).stderr
    assert left(two_domains) == [ONE.id, TWO.id, THREE.id]


@pytest.mark.parametrize(
    ("domain", "backup_id", "status", "said"),
    [
        ("nosuch", ONE.id, 4, "No domain 'nosuch'"),
        ("no*", ONE.id, 4, "No domain 'no*'"),
        ("web", "x", 6, "No backup 'x'"),
        ("web", THREE.id, 6, "has to stay: the next incremental of vda starts from it"),
        ("web", ONE.id, 6, f"has to stay: {TWO.id} depends on it"),
    ],
)
def test_what_cannot_be_removed_is_told_with_what_needs_it(
    command: Command, two_domains: Path, domain: str, backup_id: str, status: int, said: str
) -> None:
    outcome = command("prune", domain, "--remove", backup_id, "-r", two_domains, *NEVER, status=status)
    assert said in outcome.stderr
    assert left(two_domains) == [ONE.id, TWO.id, THREE.id]


def test_named_backup_is_removed(command: Command, two_domains: Path) -> None:
    command("prune", "web", "--remove", TWO.id, "-r", two_domains, *NEVER)
    assert left(two_domains) == [ONE.id, THREE.id]


def test_domain_is_given_as_an_option_too(command: Command, two_domains: Path) -> None:
    command("prune", "--domain", "web", "web", "--keep-last", "1", "-r", two_domains, *NEVER)
