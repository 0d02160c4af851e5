"""``vbackup recover`` prints what was finished or undone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.unit.builders import UUID
from vbackup.cli.handlers import recover
from vbackup.errors import BusyError


def test_recover_that_failed_does_not_say_that_nothing_is_unfinished(capsys: pytest.CaptureFixture[str]) -> None:
    recover._print({}, {UUID: BusyError("busy")}, dry_run=False, name_of=str)
    assert capsys.readouterr().out == ""
    recover._print({UUID: ()}, {}, dry_run=False, name_of=str)
    assert capsys.readouterr().out == "No unfinished backups.\n"


def test_copy_becomes_a_repository_of_its_own(command: Command, filled: Path) -> None:
    before = json.loads((filled / "vbackup.json").read_text())
    done = command("recover", "-r", filled, "--adopt", "--json").document
    assert (done["schema"], done["former_id"], done["discarded"]) == ("vbackup.adopt/1", before["id"], [])
    after = json.loads((filled / "vbackup.json").read_text())
    assert after == {**before, "id": done["id"], "former_ids": [before["id"]]}
    assert done["id"] != before["id"]
    assert done["id"] in command("recover", "-r", filled, "--adopt").stdout


@pytest.mark.parametrize(
    "more", [("web",), ("--all",), ("--abort",), ("--dry-run",), ("--force",), ("--exclusive",)], ids=str
)
def test_adoption_is_about_the_whole_repository(command: Command, filled: Path, more: tuple[str, ...]) -> None:
    assert (
        "--adopt is about the whole repository" in command("recover", "-r", filled, "--adopt", *more, status=2).stderr
    )
