"""``vbackup usage`` prints where the room goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup, incremental
from tests.unit.listed import commit_listed
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

OTHER = "f0000000-0000-4000-8000-000000000002"
ONE = backup(1)
TWO = incremental(2, ONE)
THREE_ID = "20261124T101500Z-incremental"
KIB400 = 400 * 1024


def put(path: Path, size_bytes: int) -> None:
    path.write_bytes(b"x" * size_bytes)


@pytest.fixture
def used(repository: Path) -> Path:
    """web: a full of which an incremental overrides half; db: a smaller full; and what is left of something."""
    repo = Repository.open(repository)
    one = replace(ONE, disks=(replace(ONE.disks[0], file_size_bytes=KIB400),))
    directory = commit_listed(repo, one, {"vda": {0: 1, 1: 1, 2: 1, 3: 1}})
    put(directory / "vda.qcow2", KIB400)
    commit_listed(repo, TWO, {"vda": {0: 2, 1: 0, 9: 9}})
    commit_listed(repo, replace(ONE, domain_uuid=OTHER, domain_name="db"), {"vda": {0: 1}})
    (repository / UUID / f"{THREE_ID}.partial").mkdir()
    put(repository / UUID / f"{THREE_ID}.partial" / "vda.qcow2", 64 * 1024)
    (repository / "quarantine").mkdir()
    put(repository / "quarantine" / "x", 8 * 1024)
    return repository


def test_largest_domain_comes_first(command: Command, used: Path) -> None:
    lines = command("usage", "-r", used).stdout.splitlines()
    assert lines[0].split()[:3] == ["DOMAIN", "BACKUPS", "SIZE"]
    assert lines[0].endswith("UNFINISHED")
    assert [line.split()[:2] for line in lines[1:3]] == [["web", "2"], ["db", "1"]]
    assert lines[1].endswith("64.0 KiB")
    assert lines[2].endswith("-")
    assert lines[3] == "quarantine: 8.0 KiB"
    assert lines[4].startswith("Total: ")
    assert lines[5].startswith("Free on the filesystem")
    assert max(map(len, lines)) <= 80


def test_what_pruning_frees_is_told(command: Command, used: Path) -> None:
    document = command("usage", "web", "-r", used, "--json").document
    assert document["schema"] == "vbackup.usage/1"
    assert document["filesystem"]["size_bytes"] >= document["filesystem"]["free_bytes"]
    [domain] = document["domains"]
    one, two = domain["backups"]
    small_bytes = one["own_bytes"] - KIB400
    assert 0 < small_bytes < 64 * 1024
    # Two of four blocks are in the incremental too; nothing depends on that one.
    assert one["freed_bytes"] == KIB400 // 2 + small_bytes
    assert two["freed_bytes"] == two["own_bytes"] > 0
    [leftover] = domain["leftovers"]
    assert (leftover["name"], leftover["running"]) == (f"{THREE_ID}.partial", False)
    assert leftover["own_bytes"] == 64 * 1024
    assert domain["own_bytes"] == one["own_bytes"] + two["own_bytes"] + 64 * 1024
    assert document["others"] == []
    lines = command("usage", "web", "-r", used).stdout.splitlines()
    assert lines[0] == f"Domain web ({UUID})"
    assert lines[1].endswith("PRUNING FREES")
    assert f"{THREE_ID}.partial (unfinished): 64.0 KiB" in lines


def test_all_and_several_domains(command: Command, used: Path) -> None:
    assert len(command("usage", "--all", "-r", used, "--json").document["domains"]) == 2
    named = command("usage", "db", OTHER, "web", "-r", used, "--json").document["domains"]
    assert [one["name"] for one in named] == ["db", "web"]
    command("usage", "--all", "web", "-r", used, status=2)
    command("usage", "", "-r", used, status=2)
    command("usage", "nosuch", "-r", used, status=4)


def test_list_that_cannot_be_read_leaves_the_figure_out(command: Command, used: Path) -> None:
    (used / UUID / TWO.id / "vda.blocks").write_bytes(b"x" * 100)
    [domain] = command("usage", "web", "-r", used, "--json").document["domains"]
    assert [one["freed_bytes"] is None for one in domain["backups"]] == [True, False]
    assert command("usage", "web", "-r", used).stdout.splitlines()[2].endswith(" -")


def test_backup_without_a_manifest_takes_room_too(command: Command, used: Path) -> None:
    (used / UUID / ONE.id / "manifest.json").write_text("{")
    [domain] = command("usage", "web", "-r", used, "--json").document["domains"]
    unreadable = domain["backups"][-1]
    assert (unreadable["id"], unreadable["time"], unreadable["freed_bytes"]) == (ONE.id, None, None)
    assert unreadable["own_bytes"] >= KIB400


def test_empty_repository_has_only_a_total(command: Command, repository: Path) -> None:
    assert command("usage", "-r", repository).stdout.startswith("Total: 0 B")
