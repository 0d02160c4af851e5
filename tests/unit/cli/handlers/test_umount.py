"""``vbackup umount``: what is no mount, and what one that was killed has left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.images import mount_lock

if TYPE_CHECKING:
    from tests.conftest import Command


def test_what_is_no_mount_is_status_seven(command: Command, tmp_path: Path) -> None:
    assert "No backup is mounted" in command("umount", tmp_path, status=7).stderr
    assert "the path is empty" in command("umount", "", status=2).stderr


def test_what_was_left_is_removed(command: Command, tmp_path: Path) -> None:
    for flag in ("-v", "--json", "-q"):
        (tmp_path / mount_lock.NAME).touch()
        (tmp_path / "vda.raw").touch()
        done = command("umount", tmp_path, flag)
        if flag == "--json":
            expected = {"schema": "vbackup.umount/1", "directory": str(tmp_path.resolve()), "was_dead": True}
            assert done.document == expected
        else:
            assert ("had been killed" in done.stdout) == (flag == "-v")
        assert list(tmp_path.iterdir()) == []
