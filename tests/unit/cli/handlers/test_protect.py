"""``vbackup protect`` names what it protected, and does it for backups of one domain or of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup, commit, incremental
from vbackup.repository import protection
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

OTHER = "f0000000-0000-4000-8000-000000000002"
ONE = backup(1)
TWO = incremental(2, ONE)


def is_protected(repository: Path, backup_id: str, uuid: str = UUID) -> bool:
    return protection.read(repository / uuid / backup_id) is not None


@pytest.mark.parametrize("domain", [[], ["web"], [UUID], ["--domain", "web"]], ids=" ".join)
def test_protect_takes_ids_with_or_without_their_domain(command: Command, filled: Path, domain: list[str]) -> None:
    text = command("protect", *domain, ONE.id, TWO.id, "-r", filled).stdout
    assert [line.partition(" is protected (since ")[0] for line in text.splitlines()] == [
        f"Backup {ONE.id} of domain web",
        f"Backup {TWO.id} of domain web",
    ]
    assert is_protected(filled, ONE.id)
    assert is_protected(filled, TWO.id)


def test_reason_is_told(command: Command, filled: Path) -> None:
    text = command("protect", ONE.id, "-r", filled, "--reason", "audit of 2026").stdout
    assert text.rstrip().endswith(", audit of 2026).")
    document = command("protect", ONE.id, "-r", filled, "--json").document
    (entry,) = document["backups"]
    assert entry.pop("since").endswith("Z")
    assert document["schema"] == "vbackup.protect/1"
    assert entry == {
        "domain": {"name": "web", "uuid": UUID},
        "id": ONE.id,
        "protected": True,
        "reason": "audit of 2026",
        "immutable_until": None,
    }


def test_quiet_is_quiet(command: Command, filled: Path) -> None:
    assert command("protect", ONE.id, "-r", filled, "-q").stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "No backup given"),
        (["web"], 6, "No backup 'web'"),
        (["nosuch", ONE.id], 4, "No domain 'nosuch'"),
        ([ONE.id, "x"], 6, "No backup 'x'"),
        (["web", "x"], 6, "No backup 'web' or 'x'"),
        (["db", ONE.id, "--domain", "web"], 2, "Two domains given"),
        ([ONE.id, "--domain", ""], 2, "The domain name is empty"),
        ([ONE.id, "--reason", "a\nb"], 2, "cannot be printed"),
        ([ONE.id, "--wait-lock", "-1"], 2, "--wait-lock"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(
    command: Command, filled: Path, words: list[str], status: int, said: str
) -> None:
    assert said in command("protect", *words, "-r", filled, status=status).stderr
    assert not is_protected(filled, ONE.id)


def test_id_that_two_domains_have_needs_a_domain(command: Command, filled: Path) -> None:
    commit(Repository.open(filled), replace(ONE, domain_uuid=OTHER, domain_name="db"))
    assert "Give the domain" in command("protect", ONE.id, "-r", filled, status=6).stderr
    command("protect", "db", ONE.id, "-r", filled)
    assert is_protected(filled, ONE.id, OTHER)
    assert not is_protected(filled, ONE.id)


def test_busy_domain_is_told(command: Command, filled: Path) -> None:
    with Repository.open(filled).lock(UUID):
        command("protect", ONE.id, "-r", filled, status=8)
