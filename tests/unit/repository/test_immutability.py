"""Backups that are immutable, with what they depend on: prune and consolidate leave them alone for that time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, Recorder, backup, commit, incremental
from vbackup import immutable
from vbackup.errors import ChainError, StorageError
from vbackup.operations import protect
from vbackup.operations.protect import ProtectRequest
from vbackup.repository import immutability, removal, stays
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command

ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)


@pytest.fixture
def paths(repo: Repository) -> Iterator[list[Path]]:
    try:
        immutable.refuse_impossible(repo.path)
    except StorageError as err:
        pytest.skip(str(err))
    yield [commit(repo, one) for one in (ONE, TWO, THREE)]
    subprocess.run(["chattr", "-R", "-i", repo.path], check=True)


def run(repo: Repository, backup_id: str, days: int) -> datetime | None:
    request = ProtectRequest((backup_id,), immutable_days=days)
    (changed,) = protect.run(request, repository=repo, reporter=Recorder(), stop=Stop())
    assert changed.protection is None
    return changed.immutable_until


def test_chain_is_immutable_and_nothing_else(repo: Repository, paths: list[Path]) -> None:
    end = run(repo, TWO.id, 5)
    assert end is not None
    assert timedelta(days=4.9) < end - datetime.now(timezone.utc) <= timedelta(days=5)
    for path in paths[:2]:
        for name in ("manifest.json", "vda.qcow2"):
            with pytest.raises(PermissionError):
                (path / name).unlink()
    assert immutability.until(paths[2]) is None
    (paths[0] / "note").write_text("what is written later has room")


def test_time_only_becomes_longer(repo: Repository, paths: list[Path]) -> None:
    end = run(repo, ONE.id, 5)
    assert run(repo, ONE.id, 3) == end
    longer = run(repo, ONE.id, 8)
    assert end is not None
    assert longer is not None
    assert longer > end
    assert paths


def test_stays_until_the_time_is_over_and_is_deleted_then(repo: Repository, paths: list[Path]) -> None:
    run(repo, ONE.id, 5)
    facts = stays.read(repo, UUID)
    assert facts.reasons_to_stay(ONE.id)[0].startswith("immutable until ")
    assert not [each for each in facts.reasons_to_stay(TWO.id) if "immutable" in each]
    immutability.make(paths[1], TWO, datetime.now(timezone.utc) - timedelta(seconds=5))
    assert not [each for each in stays.read(repo, UUID).reasons_to_stay(TWO.id) if "immutable" in each]
    with pytest.raises(PermissionError):
        (paths[1] / "manifest.json").unlink()
    assert removal.take_away(paths[1])
    assert removal.delete_removed(paths[1].parent) == []
    assert not list(paths[1].parent.glob(".removed-*"))


def test_missing_base_changes_nothing(repo: Repository, paths: list[Path]) -> None:
    paths[0].rename(paths[0].with_name("elsewhere"))
    with pytest.raises(ChainError, match="missing"):
        run(repo, TWO.id, 5)
    assert immutability.until(paths[1]) is None


def test_commands(command: Command, repo: Repository, paths: list[Path]) -> None:
    text = command("protect", TWO.id, "-r", repo.path, "--immutable", "3").stdout
    assert "is immutable until" in text
    outcome = command("prune", "web", "--remove", ONE.id, "-r", repo.path, status=6)
    assert "immutable until" in outcome.stderr
    outcome = command("consolidate", "web", TWO.id, "--full", "-r", repo.path, status=6)
    assert "immutable until" in outcome.stderr
    command("protect", TWO.id, "-r", repo.path, "--immutable", "3", "--reason", "x", status=2)
    shown = command("protect", THREE.id, "-r", repo.path, "--json").document
    assert shown["backups"][0]["immutable_until"] is None
    assert paths
