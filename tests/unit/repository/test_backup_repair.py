"""A backup is made of a twin that is whole; nothing else gets the name of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.recorded import Recorded, flip_block
from tests.unit.builders import UUID
from vbackup.errors import ChainError, InterruptedBySignalError
from vbackup.repository import backup_repair


def moved(recorded: Recorded, tmp_path: Path) -> tuple[Path, Path]:
    """The place of a backup that is not there, and where it is in a copy."""
    target = recorded.path(recorded.backups[0]).parent
    twin = tmp_path / "copy" / UUID / target.name
    shutil.copytree(target, twin)
    shutil.rmtree(target)
    return target, twin


def no_check() -> None:
    """Go on."""


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_first_twin_that_is_whole_is_taken(recorded: Recorded, tmp_path: Path) -> None:
    target, twin = moved(recorded, tmp_path)
    bad = tmp_path / "bad" / UUID / target.name
    shutil.copytree(twin, bad)
    flip_block(bad / "vda.qcow2", 2)
    nothing = tmp_path / "nothing" / UUID / target.name
    assert backup_repair.bring_back(target, [nothing], check=no_check, is_dry=False) is None
    assert backup_repair.bring_back(target, [nothing, bad, twin], check=no_check, is_dry=True) == twin
    assert not target.exists()
    assert backup_repair.bring_back(target, [nothing, bad, twin], check=no_check, is_dry=False) == twin
    assert content(target) == content(twin)
    assert target.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("harm", ["other id", "link", "missing"])
def test_what_is_no_such_backup_is_refused(recorded: Recorded, tmp_path: Path, harm: str) -> None:
    target, twin = moved(recorded, tmp_path)
    if harm == "other id":
        shutil.copy(recorded.path(recorded.backups[1], "manifest.json"), twin / "manifest.json")
    else:
        (twin / "vda.blocks").unlink()
        if harm == "link":
            (twin / "vda.blocks").symlink_to("/dev/zero")
    for is_dry in (True, False):
        with pytest.raises(ChainError, match=rf"^Backup {target.name} is missing, and cannot be brought back"):
            backup_repair.bring_back(target, [twin], check=no_check, is_dry=is_dry)
    assert not [path for path in target.parent.iterdir() if path.name.startswith(".") or path == target]


def test_interrupted_copy_leaves_nothing(recorded: Recorded, tmp_path: Path) -> None:
    target, twin = moved(recorded, tmp_path)
    before = sorted(target.parent.iterdir())
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedBySignalError(15)

    with pytest.raises(InterruptedBySignalError):
        backup_repair.bring_back(target, [twin], check=check, is_dry=False)
    assert sorted(target.parent.iterdir()) == before
