"""``vbackup forget`` tells which bitmaps it removed and what that means for the next backup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import FOREIGN, UUID
from tests.unit.fake_domain import FakeDomain, run
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def backed_up(hosted: FakeDomain, repository: Path) -> Repository:
    """A repository with a backup of the domain."""
    repo = Repository.open(repository)
    run(hosted, repo)
    return repo


def test_bitmaps_are_removed_and_named(command: Command, hosted: FakeDomain, backed_up: Repository) -> None:
    bitmaps = [name for of_disk in hosted.bitmaps().values() for name in of_disk]
    lines = command("forget", "web", "-r", backed_up.path).stdout.splitlines()
    assert lines[0].split() == ["DISK", "NODE", "BITMAP"]
    assert {line.split()[2] for line in lines[1:-1]} >= set(bitmaps)
    assert lines[-1] == (
        f"Removed 4 bitmaps of repository {backed_up.id} from domain web. The domain's next backup to that repository"
        " will be full; existing backups stay."
    )
    assert hosted.bitmaps() == {"vda": {}, "vdb": {}}
    said = command("forget", "web", "-r", backed_up.path).stdout
    assert said == f"No bitmap of repository {backed_up.id} on domain web can be removed.\n"


def test_dry_run_removes_nothing(command: Command, hosted: FakeDomain, backed_up: Repository) -> None:
    before = hosted.qemu.state()
    document = command("forget", "web", "-r", backed_up.path, "--dry-run", "--json").document
    assert (document["schema"], document["dry_run"], document["repository"]) == (
        "vbackup.forget/1",
        True,
        backed_up.id,
    )
    assert document["domain"] == {"name": "web", "uuid": UUID}
    assert [claim["dev"] for claim in document["removed"]] == ["vda", "vda", "vdb", "vdb"]
    assert (document["kept"], document["unopened"]) == ([], [])
    assert "Would remove 4 bitmaps" in command("forget", "web", "-r", backed_up.path, "--dry-run").stdout
    assert hosted.qemu.state() == before


def test_repository_that_is_gone_is_forgotten_by_its_id(
    command: Command, hosted: FakeDomain, backed_up: Repository, tmp_path: Path
) -> None:
    command("forget", "web", "--repository-id", FOREIGN)
    assert hosted.bitmaps() != {"vda": {}, "vdb": {}}
    command("forget", "web", "--repository-id", backed_up.id, "-r", tmp_path / "gone")
    assert hosted.bitmaps() == {"vda": {}, "vdb": {}}


def test_repository_with_that_id_is_locked(command: Command, hosted: FakeDomain, backed_up: Repository) -> None:
    with backed_up.lock(UUID):
        command("forget", "web", "--repository-id", backed_up.id, "-r", backed_up.path, status=8)
    assert hosted.bitmaps() != {"vda": {}, "vdb": {}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--force",), "--force needs --repository-id"),
        (("--repository-id", "x"), "'x' is not the id of a repository"),
        (("--repository-id", "../0123456789"), "is not the id of a repository"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_contradiction_is_wrong_usage(
    command: Command, hosted: FakeDomain, backed_up: Repository, arguments: tuple[str, ...], said: str
) -> None:
    assert said in command("forget", "web", "-r", backed_up.path, *arguments, status=2).stderr
    assert hosted.bitmaps() != {"vda": {}, "vdb": {}}
