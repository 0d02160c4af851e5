"""``vbackup unprotect`` ends a protection, whether there is one or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.builders import UUID, backup
from vbackup.repository import protection

if TYPE_CHECKING:
    from tests.conftest import Command

ONE = backup(1)


def test_protection_ends(command: Command, filled: Path) -> None:
    command("protect", ONE.id, "-r", filled)
    text = command("unprotect", ONE.id, "-r", filled).stdout
    assert text == f"Backup {ONE.id} of domain web is not protected any more.\n"
    assert protection.read(filled / UUID / ONE.id) is None
    document = command("unprotect", "web", ONE.id, "-r", filled, "--json").document
    assert (document["schema"], [one["protected"] for one in document["backups"]]) == ("vbackup.unprotect/1", [False])


def test_unknown_backup_is_told(command: Command, filled: Path) -> None:
    assert "No backup" in command("unprotect", "x", "-r", filled, status=6).stderr
