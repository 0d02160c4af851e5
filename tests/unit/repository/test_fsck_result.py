"""The result of a check is kept with its backup, and what cannot be read counts as none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import NOON
from vbackup.errors import StorageError
from vbackup.repository import fsck_result
from vbackup.repository.fsck_result import CheckedFileSystem, FsckResult

GOOD = CheckedFileSystem("vda/1", "ext4", "clean")
BAD = CheckedFileSystem("vg0/röot", "xfs", "damaged", "xfs_repair -n has found damage")
LOCKED = CheckedFileSystem("vdb", "crypto_LUKS", "unchecked", "it is encrypted")


def result(*systems: CheckedFileSystem) -> FsckResult:
    return FsckResult(NOON, ("vda", "vdb"), systems, 12.5)


@pytest.mark.parametrize("systems", [(GOOD,), (GOOD, BAD, LOCKED), ()])
def test_what_is_written_is_read(tmp_path: Path, systems: tuple[CheckedFileSystem, ...]) -> None:
    fsck_result.write(tmp_path, result(*systems))
    assert fsck_result.read(tmp_path) == result(*systems)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]


def test_verdict_and_sentence() -> None:
    assert (result(GOOD, LOCKED).is_good, result(GOOD, LOCKED).verdict) == (True, "clean")
    assert result(GOOD, LOCKED).reason == "2 file systems: 1 clean, 1 unchecked."
    assert (result(GOOD, BAD).verdict, result(BAD).reason) == ("damaged", "1 file system: 1 damaged.")


@pytest.mark.parametrize(
    ("name", "value"),
    [("schema", "vbackup.fsck/2"), ("time", "x"), ("disks", "vda"), ("file_systems", [{}]), ("duration_s", None)],
)
def test_result_that_cannot_be_read_is_none(tmp_path: Path, name: str, value: Any) -> None:
    assert fsck_result.read(tmp_path) is None
    fsck_result.write(tmp_path, result(GOOD))
    document = json.loads((tmp_path / "fsck.json").read_text())
    (tmp_path / "fsck.json").write_text(json.dumps({**document, name: value}))
    assert fsck_result.read(tmp_path) is None


def test_result_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"fsck\.json"):
        fsck_result.write(tmp_path / "gone", result(GOOD))
