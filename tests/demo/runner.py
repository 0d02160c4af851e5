"""Run the demo's commands, one at a time, so that a signal ends the one that runs and then the demo.

A signal is handed on as SIGTERM and the command's end is waited for: vbackup then undoes what it has
begun, as it would if it had been started from a shell.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vbackup.stop import Stop

#: Of the source tree: ``python -m`` finds vbackup and tests there.
ROOT = Path(__file__).parents[2]


class DemoError(Exception):
    """A command failed, or something is not as it must be."""


class Relay(Stop):
    """A request to stop that also reaches the command that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[str] | None = None

    def request(self, signum: int) -> None:
        """See Stop."""
        super().request(signum)
        self.hand_on()

    def hand_on(self) -> None:
        """Tell the process, if there is a request and a process."""
        if self.signum is not None and self.process is not None:
            self.process.send_signal(signal.SIGTERM)


class Runner:
    """Runs commands in the demo's directory."""

    def __init__(self, directory: Path, environment: Mapping[str, str], relay: Relay) -> None:
        self._directory = directory
        self._environment = {**os.environ, **environment, "PYTHONPATH": os.fspath(ROOT)}
        self._relay = relay

    def run(self, argv: Sequence[str], *, captured: bool = False, statuses: Sequence[int] = (0,)) -> str:
        """Run a command to its end; returns what it printed, if that was captured.

        Raises DemoError where it ends with another status, InterruptedBySignalError on a request to stop.
        """
        self._relay.check()
        # In a separate session: the terminal's Ctrl-C comes to the demo first, and once.
        process = self._relay.process = subprocess.Popen(
            argv,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if captured else None,
            text=True,
            start_new_session=True,
        )
        self._relay.hand_on()  # what came while the process was being started
        printed, _ = process.communicate()
        self._relay.process = None
        self._relay.check()
        if process.returncode not in statuses:
            raise DemoError(f"'{shlex.join(argv)}' ended with status {process.returncode}.")
        return printed or ""

    def module(self, name: str, *arguments: str, captured: bool = False) -> str:
        """Run a Python module of the source tree."""
        return self.run([sys.executable, "-m", name, *arguments], captured=captured)
