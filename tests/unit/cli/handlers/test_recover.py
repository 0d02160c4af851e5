"""``vbackup recover`` prints what was finished or undone."""

from __future__ import annotations

import pytest

from tests.unit.builders import UUID
from vbackup.cli.handlers import recover
from vbackup.errors import BusyError


def test_recover_that_failed_does_not_say_that_nothing_is_unfinished(capsys: pytest.CaptureFixture[str]) -> None:
    recover._print({}, {UUID: BusyError("busy")}, dry_run=False, name_of=str)
    assert capsys.readouterr().out == ""
    recover._print({UUID: ()}, {}, dry_run=False, name_of=str)
    assert capsys.readouterr().out == "No unfinished backups.\n"
