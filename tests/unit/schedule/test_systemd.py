"""systemd's programs are asked, and that they are missing, fail or hang is an answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vbackup.schedule import systemd

TOP = Path(__file__).resolve().parents[3]


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    return path


def test_commands_of_a_user() -> None:
    assert systemd.command("start", "x.timer", is_user=False) == ("systemctl", "start", "x.timer")
    assert systemd.command("start", "x.timer", is_user=True) == ("systemctl", "--user", "start", "x.timer")


def test_failure_is_the_last_line_that_was_said(programs: Path) -> None:
    program(programs, "systemctl", "echo one >&2; echo 'Failed to do it.' >&2; exit 1")
    assert systemd.run(["systemctl", "start"]) == "Failed to do it."
    program(programs, "systemctl", "exit 4")
    assert systemd.run(["systemctl", "start"]) == "exit status 4"
    program(programs, "systemctl", "exit 0")
    assert systemd.run(["systemctl", "start"]) is None


def test_program_that_is_missing_or_hangs(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert systemd.run(["no-such-program"]) == "there is no program no-such-program"
    program(programs, "systemctl", "exec sleep 100")
    monkeypatch.setattr(systemd, "_TIMEOUT_S", 0.2)
    assert systemd.run(["systemctl"]) == "systemctl did not end within 0 s"


def test_active_is_what_systemd_says(programs: Path) -> None:
    program(programs, "systemctl", '[ "$*" = "is-active --quiet x.timer" ]')
    assert systemd.is_active("x.timer", is_user=False)
    assert not systemd.is_active("y.timer", is_user=False)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_exposure_is_the_one_that_the_man_page_states(tmp_path: Path) -> None:
    shutil.copy(TOP / "hooks/systemd/vbackup@.service", tmp_path)
    exposure = systemd.exposure(tmp_path, "vbackup@nightly.service", is_user=False)
    assert exposure is not None
    assert f"{exposure.split()[0]} (of 10)" in (TOP / "man/vbackup.1.rst").read_text()
    (tmp_path / "vbackup@nightly.service.d").mkdir()
    (tmp_path / "vbackup@nightly.service.d" / "x.conf").write_text("[Service]\nProtectHome=yes\nPrivateTmp=yes\n")
    closer = systemd.exposure(tmp_path, "vbackup@nightly.service", is_user=False)
    assert closer is not None
    assert float(closer.split()[0]) < float(exposure.split()[0])


def test_no_exposure_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert systemd.exposure(tmp_path, "vbackup@nightly.service", is_user=False) is None


def test_no_exposure_of_what_is_not_there(tmp_path: Path) -> None:
    assert systemd.exposure(tmp_path, "no-such-unit@x.service", is_user=False) is None
