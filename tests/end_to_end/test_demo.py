"""The demo (tests.demo) ends as a guest's owner would wish when somebody presses Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests.lab import HEEDING_SIGNALS

ROOT = Path(__file__).parents[2]
#: Longer than it takes on a busy machine; a demo that hangs is ended and the test fails.
LIMIT_S = 90


def processes_of(directory: Path) -> list[str]:
    """The command lines that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue  # it has ended
        if os.fsencode(directory) in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.mark.long
def test_interrupted_demo_leaves_no_guest_and_no_directory() -> None:
    with tempfile.TemporaryDirectory(prefix="vbd-", dir="/tmp") as parent:
        directory = Path(parent, "demo")
        argv = [*HEEDING_SIGNALS, sys.executable, "-m", "tests.demo", "--directory", os.fspath(directory)]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            limit = threading.Timer(LIMIT_S, process.terminate)
            limit.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    # vbackup has planned and begins to copy, at a speed that takes seconds.
                    if "Filesystems were frozen" in line:
                        break
                assert any("guest=demo" in line for line in processes_of(directory))
                process.send_signal(signal.SIGINT)
                said = process.stdout.read()
            finally:
                limit.cancel()
        assert process.returncode == 128 + signal.SIGINT, said
        assert "Traceback" not in said
        assert processes_of(directory) == []
        assert not list(Path(parent).iterdir())
