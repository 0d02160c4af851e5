"""Reporters that every part of vbackup can use."""

from __future__ import annotations

import pytest

from tests.unit.builders import tell
from vbackup.report import Silent


def test_nobody_is_told_anything(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Silent())
    assert capsys.readouterr() == ("", "")
