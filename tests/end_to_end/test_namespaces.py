"""A run of the tests leaves no process, mount or loop device, whatever ends it (tests.namespaces)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import namespaces
from tests.daemon import wait_for
from tests.end_to_end import abandoned
from tests.lab import HEEDING_SIGNALS

TOP = Path(__file__).resolve().parents[2]

if _reason := namespaces.reason_not_to_enter():
    pytest.skip(_reason, allow_module_level=True)


def left(directory: Path) -> list[str]:
    """The command lines that name the directory, and the loop devices and mounts below it."""
    found = []
    for pattern in ("proc/[0-9]*/cmdline", "sys/block/loop*/loop/backing_file", "proc/self/mounts"):
        for path in Path("/").glob(pattern):
            try:
                text = path.read_bytes()
            except OSError:
                continue  # it has ended
            if os.fsencode(directory) in text:
                found.append(f"{path}: {text!r}")
    return found


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_run_that_is_ended_leaves_nothing(tmp_path: Path, signum: signal.Signals, processes: int) -> None:
    ready = tmp_path / "ready"
    argv = [*HEEDING_SIGNALS, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(processes)]
    argv += ["--basetemp", str(tmp_path / "pytest"), str(Path(abandoned.__file__))]
    with subprocess.Popen(
        argv,
        cwd=TOP,
        env={**os.environ, abandoned.READY: str(ready)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        wait_for(lambda: ready.exists() or process.poll() is not None, "the start of everything")
        assert len(left(tmp_path)) >= 3
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)  # as a terminal does
        else:
            process.send_signal(signum)
        said, _ = process.communicate(timeout=30)
    expected = {signal.SIGINT: 2, signal.SIGKILL: -signal.SIGKILL}.get(signum, 128 + signum)
    assert process.returncode == expected, said
    if signum == signal.SIGKILL:
        # Nobody is left to wait for the end of the others.
        wait_for(lambda: not left(tmp_path), "the end of everything")
    assert left(tmp_path) == []
