"""A repository that an older vbackup wrote is read, restored and recovered as it was.

tests/fixtures/old was written by commit 774b7f0, the last one before the package was divided into rooms: three
backups of two disks, a fourth that was killed while its jobs copied, what its ``list --json`` printed, and the
SHA-256 of each disk as it was at each backup, computed from what the test had written and not from a restore.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import Lab
from vbackup.model import Level
from vbackup.repository import journal
from vbackup.repository.journal import Step

if TYPE_CHECKING:
    from tests.conftest import Command

OLD = Path(__file__).parent.parent / "fixtures" / "old"
CONTENTS = json.loads((OLD / "contents.json").read_text())
UUID = "54292764-e78a-4568-857c-69e0b12aedba"
KILLED = "20261128T190342Z-incremental"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "repository", tmp_path / "repository"))


def test_list_prints_what_it_printed_then(command: Command, repository: Path) -> None:
    expected = json.loads((OLD / "list.json").read_text())
    expected["repository"]["path"] = str(repository)
    assert without_new_members(command("list", "-r", repository, "--json").document, expected) == expected


def without_new_members(value: Any, expected: Any) -> Any:
    """Return the document with only those members that it had then: there may be more now, but not other values."""
    if isinstance(value, dict) and isinstance(expected, dict):
        return {name: without_new_members(value[name], inner) for name, inner in expected.items() if name in value}
    if isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        return [without_new_members(*pair) for pair in zip(value, expected)]
    return value


@pytest.mark.parametrize("backup_id", CONTENTS)
def test_every_point_is_restored_byte_for_byte(
    command: Command, repository: Path, tmp_path: Path, backup_id: str
) -> None:
    output = tmp_path / "restored"
    argv = ("restore", "web", "-r", repository, "--backup", backup_id, "--output", output, "--format", "raw")
    command("-q", *argv)
    digests = {dev: hashlib.sha256((output / f"{dev}.raw").read_bytes()).hexdigest() for dev in CONTENTS[backup_id]}
    assert digests == CONTENTS[backup_id]


def test_journal_of_a_killed_backup_is_read(repository: Path) -> None:
    stage = repository / UUID / f"{KILLED}.partial"
    entry = journal.read(stage, backup_id=KILLED, domain_uuid=UUID)
    assert entry is not None
    assert (entry.step, entry.guest_was_stopped, entry.draft.level) == (Step.STARTED, False, Level.INCREMENTAL)
    assert sorted(entry.images) == ["vda.qcow2", "vdb.qcow2"]


def test_killed_backup_of_a_domain_that_is_gone_is_removed(command: Command, repository: Path, lab: Lab) -> None:
    [undone] = command("-c", lab.uri, "recover", "web", "-r", repository, "--json").document["backups"]
    assert undone["id"] == KILLED
    assert "its jobs were copying" in undone["reason"]
    assert not list(repository.glob("*/*.partial"))
    assert len(command("list", "-r", repository, "--json").document["backups"]) == len(CONTENTS)
