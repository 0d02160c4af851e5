"""Which scripts a command runs: those that it names, those of the environment, those of the system, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.unit.builders import Recorder
from vbackup.cli import parser, script_options
from vbackup.errors import UnsafeScriptError
from vbackup.scripts import finding
from vbackup.scripts.runner import TIMEOUT_S, Settings


def options(*words: str) -> Any:
    return parser.parse(["backup", "web", *words])


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        ((), None, Settings(finding.DIRECTORY)),
        ((), "", Settings(finding.DIRECTORY)),
        ((), "/e", Settings(Path("/e"), is_wanted=True)),
        (("--scripts", "/s"), "/e", Settings(Path("/s"), is_wanted=True)),
        (("--no-scripts",), "/e", Settings()),
        (("--script-timeout", "90"), None, Settings(finding.DIRECTORY, timeout_s=90)),
    ],
)
def test_settings(
    words: tuple[str, ...], environment: str | None, expected: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("VBACKUP_SCRIPTS", environment)
    assert script_options.settings_of(options(*words)) == expected
    assert expected.timeout_s in (90, TIMEOUT_S)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--scripts", "/s", "--no-scripts"), "not allowed with argument"),
        (("--scripts", ""), "the path is empty"),
        (("--script-timeout", "0"), "is not more than 0 seconds"),
        (("--script-timeout", "soon"), "is not a time"),
    ],
)
def test_what_is_no_option_is_refused(words: tuple[str, ...], why: str, command: Command) -> None:
    assert why in command("backup", "web", "-r", "/none", *words, status=2).stderr


def test_several_domains_hear_of_common_scripts_once(tmp_path: Path, recorder: Recorder) -> None:
    script = tmp_path / "pre-backup.d" / "x"
    script.parent.mkdir(mode=0o755)
    script.touch(mode=0o644)
    made = script_options.for_several(options("--scripts", str(tmp_path)), recorder)
    assert recorder.warnings == list(made.reported)
    assert len(recorder.warnings) == 1
    script.parent.chmod(0o777)
    with pytest.raises(UnsafeScriptError):
        script_options.for_several(options("--scripts", str(tmp_path)), recorder)


def test_dry_run_looks_for_no_scripts(recorder: Recorder) -> None:
    assert script_options.for_several(options("--scripts", "/none", "--dry-run"), recorder) == Settings()
