"""Running libvirt daemons are found and told to look for the hook script; no other process gets a signal."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.hooks.conftest import needs_root
from vbackup.hooks import daemons
from vbackup.hooks.daemons import Daemon

# Not with print, which the signal may interrupt.
HANDLER = "import os, signal; signal.signal(signal.SIGHUP, lambda *_: os.write(1, b'told\\n')); "
LOOP = "print('ready', flush=True)\nwhile True: signal.pause()"


@pytest.fixture
def as_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start Python programs that look like libvirt daemons, with a name that no real one has."""
    monkeypatch.setattr(daemons, "NAMES", ("vbackup-testd",))
    program = tmp_path / "vbackup-testd"
    shutil.copy(Path(sys.executable).resolve(), program)
    started = []

    def start(code: str) -> subprocess.Popen[str]:
        environment = {"PYTHONHOME": sys.base_prefix}
        process = subprocess.Popen([program, "-Sc", code], stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@needs_root
def test_daemon_gets_the_signal(as_daemon: Callable[[str], subprocess.Popen[str]]) -> None:
    process = as_daemon(HANDLER + LOOP)
    assert daemons.reload_all() == (Daemon("vbackup-testd", process.pid, told=True),)
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"


@needs_root
def test_daemon_that_the_signal_would_end_is_not_told(as_daemon: Callable[[str], subprocess.Popen[str]]) -> None:
    process = as_daemon("import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); " + LOOP)
    assert daemons.reload_all() == (Daemon("vbackup-testd", process.pid, told=False),)
    assert process.poll() is None


@needs_root
def test_process_of_a_user_is_no_daemon(as_daemon: Callable[[str], subprocess.Popen[str]]) -> None:
    as_daemon(HANDLER + "import os; os.setuid(65534); " + LOOP)
    assert daemons.reload_all() == ()


@needs_root
def test_daemon_of_another_root_directory_is_not_ours(
    as_daemon: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    as_daemon(HANDLER + f"import os; os.chroot({str(tmp_path)!r}); " + LOOP)
    assert daemons.reload_all() == ()


@needs_root
def test_daemon_whose_program_was_upgraded_is_known(
    as_daemon: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = as_daemon(HANDLER + LOOP)
    (tmp_path / "vbackup-testd").unlink()
    assert daemons.reload_all() == (Daemon("vbackup-testd", process.pid, told=True),)
