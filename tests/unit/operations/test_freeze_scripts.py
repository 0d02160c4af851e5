"""Scripts of a freeze have half of its limit, counted from the freeze command; those of the thaw follow in any case."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup.domain.freeze import Freeze
from vbackup.operations import freeze_scripts
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.stop import Stop


@pytest.fixture
def scripts(tmp_path: Path, recorder: Recorder) -> DomainScripts:
    for phase in ("post-freeze", "post-thaw"):
        path = tmp_path / f"{phase}.d" / "x"
        path.parent.mkdir(mode=0o755)
        path.write_text("#!/bin/sh\necho $VBACKUP_TIMEOUT\n")
        path.chmod(0o755)
    return DomainScripts(Settings(tmp_path), reporter=recorder, stop=Stop(), work="backup", domain="web")


def test_time_counts_from_the_freeze_command(scripts: DomainScripts, recorder: Recorder) -> None:
    with scripts.attended(), freeze_scripts.around(scripts, {}, limit_s=40) as frozen:
        frozen(Freeze(begun=time.monotonic() - 15))
        assert recorder.steps == []
    first, second = recorder.steps
    assert 3 < float(first.removeprefix("post-freeze script x: ")) <= 5
    assert second == "post-thaw script x: 300.0"


def test_freeze_that_took_its_time_leaves_none(scripts: DomainScripts, recorder: Recorder) -> None:
    with scripts.attended(), freeze_scripts.around(scripts, {}, limit_s=10) as frozen:
        frozen(Freeze(begun=time.monotonic() - 6))
    assert recorder.steps == ["post-thaw script x: 300.0"]
    assert "no time was left" in recorder.warnings[0]


def test_guest_that_is_not_frozen_has_no_scripts(scripts: DomainScripts, recorder: Recorder) -> None:
    with scripts.attended(), freeze_scripts.around(scripts, {}, limit_s=10) as frozen:
        frozen(Freeze())
    assert recorder.steps == recorder.warnings == []


def test_thaw_follows_a_failure(scripts: DomainScripts, recorder: Recorder) -> None:
    def fail() -> None:
        with scripts.attended(), freeze_scripts.around(scripts, {}, limit_s=10) as frozen:
            frozen(Freeze(begun=time.monotonic()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [step.split()[0] for step in recorder.steps] == ["post-freeze", "post-thaw"]
