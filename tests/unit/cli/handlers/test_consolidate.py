"""``vbackup consolidate``: its arguments and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.builders import UUID, backup, commit, incremental
from vbackup.cli import main
from vbackup.errors import Status
from vbackup.repository.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository.create(tmp_path / "repository")
    one = backup(1)
    commit(made, one)
    commit(made, incremental(2, one))
    return made


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--full"],
        ["20261123T130000Z-full"],
        ["--full", "--max-chain", "3", "20261123T130000Z-full"],
        ["--max-chain", "3", "20261123T130000Z-full"],
        ["--max-chain", "3", "--consolidate", "in-place"],
        ["--max-chain", "0"],
    ],
)
def test_what_does_not_fit_together_is_refused(repository: Repository, words: list[str]) -> None:
    assert main(["consolidate", "web", *words, "-r", str(repository.path)]) == Status.USAGE


def test_dry_run_shows_the_plan(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    newest = repository.catalogue(UUID).history.backups[-1].id
    oldest = repository.catalogue(UUID).history.backups[0].id
    words = ["consolidate", "web", newest, "--full", "--dry-run", "--consolidate", "copy", "-r", str(repository.path)]
    assert main(words) == Status.DONE
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"Backup {newest} takes over {oldest}:",
        "  vda: copy, needs up to 1.4 MiB, then a full",
    ]
    assert main([*words, "--json"]) == Status.DONE
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["dry_run"], document["merged"]) == ("vbackup.consolidate/1", True, [])
    assert document["plan"]["merges"][0]["disks"][0]["layers"] == [newest, oldest]


def test_nothing_to_do_is_said(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consolidate", "web", "--max-chain", "5", "-r", str(repository.path)]) == Status.DONE
    assert capsys.readouterr().out == "Nothing to do: no chain is longer.\n"


def test_unknown_backup_is_status_6(repository: Repository) -> None:
    words = ["consolidate", "web", "20200101T000000Z-full", "--full", "-r", str(repository.path)]
    assert main(words) == Status.CHAIN


def test_busy_repository_is_status_8(repository: Repository) -> None:
    with repository.lock(UUID):
        assert main(["consolidate", "web", "--max-chain", "1", "-r", str(repository.path)]) == Status.BUSY
