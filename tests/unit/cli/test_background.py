"""A command goes on in the background when it is ready; until then its words and its end are the command's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import HEEDING_SIGNALS

PROGRAM = """\
import os, signal, sys
from pathlib import Path
from vbackup.cli import background
from vbackup.errors import VbackupError
from vbackup.stop import Stop, on_signals
try:
    with on_signals(Stop()) as stop:
        started = background.start(stop)
        if isinstance(started, int):
            os._exit(started)
        WORK
except VbackupError as err:
    print(err, file=sys.stderr)
    os._exit(99)
os._exit(0)
"""


def run(work: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [*HEEDING_SIGNALS, sys.executable, "-c", PROGRAM.replace("WORK", work.strip()), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)


def test_command_ends_when_the_child_is_ready(tmp_path: Path) -> None:
    """The child has nothing open by then that the caller's shell, or its pipeline, waits for."""
    os.mkfifo(tmp_path / "end")
    work = """
        print("ready", os.getsid(0) == os.getpid())
        started.ready()
        print("nobody sees that")
        open(sys.argv[1]).read()
        Path(sys.argv[2]).write_text(os.getcwd())
        os.rename(sys.argv[2], sys.argv[2] + ".done")
    """
    done = run(work, tmp_path / "end", tmp_path / "where")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready True\n", "")
    assert not (tmp_path / "where.done").exists()
    os.mkfifo(tmp_path / "where")  # which the child writes to last but one
    (tmp_path / "end").write_text("")
    assert (tmp_path / "where").read_text() == "/"


def test_child_that_fails_gives_the_status() -> None:
    done = run("print('sorry', file=sys.stderr, flush=True); os._exit(7)")
    assert (done.returncode, done.stderr) == (7, "sorry\n")


def test_child_that_is_killed_is_an_error() -> None:
    done = run("os.kill(os.getpid(), signal.SIGKILL)")
    assert (done.returncode, done.stderr) == (
        99,
        "The process in the background was killed by signal 9 before it was ready.\n",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_command_is_one_to_the_child(number: signal.Signals) -> None:
    work = f"""
        with stop.descriptor() as stopping:
            os.kill(os.getppid(), {int(number)})
            import select
            select.select([stopping], [], [], 15)
        os._exit(100 + stop.signum)
    """
    assert run(work).returncode == 100 + number
