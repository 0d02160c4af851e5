"""Reporters that every part of vbackup can use."""

from __future__ import annotations

import pytest

from tests.unit.builders import Recorder, tell
from vbackup.report import Labelled, Phase, Silent


def test_nobody_is_told_anything(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Silent())
    assert capsys.readouterr() == ("", "")


def test_domain_stands_before_every_message_and_disk(recorder: Recorder) -> None:
    part = Labelled(recorder, "web")
    part.step("Disk vda: full.")
    part.warning("It is slow.")
    part.progress("vda", Phase.COPY, 1, 2)
    assert (recorder.steps, recorder.warnings) == (["web: Disk vda: full."], ["web: It is slow."])
    assert recorder.told == {"web/vda": [(1, 2)]}
