"""Leave nothing of a boot test behind if vbackup is killed: neither the copy of the domain nor its directories.

libvirt destroys a domain that was started with VIR_DOMAIN_START_AUTODESTROY when its connection ends, but not one of
the embedded driver ("Domain autodestroy not supported for embedded drivers yet"), and it knows nothing of the
directory with the copy's files. So a process waits for the end of vbackup, whichever driver it is
(vbackup.domain.boot_guard.__main__).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vbackup.errors import UnsuitableError

#: What the process says when signals do not end it any more, and what vbackup says last.
READY, DONE = "ready", "done"
PROGRAM = Path(__file__).with_name("__main__.py")
#: How long the process may take to end; it has nothing to do then.
END_S = 5.0


class BootGuard:
    """The guard, while the block runs. A context manager; the copy is to be started and destroyed in its block.

    ``uuid`` is the copy's, and ``directories`` what is removed if vbackup is killed; the caller removes them otherwise.
    Entering raises UnsuitableError.
    """

    def __init__(self, *, uuid: str, directories: Sequence[Path]) -> None:
        self._is_over = True
        self._orders = {"uuid": uuid, "directories": [os.fspath(one) for one in directories]}

    def __enter__(self) -> BootGuard:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.fspath(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it may outlive vbackup, whose stderr would then stay open
                start_new_session=True,  # a signal to vbackup's process group must not end it
                text=True,
            )
        except OSError as err:
            raise UnsuitableError(
                f"No boot test without a process that ends it if vbackup is killed, but {sys.executable or 'Python'}"
                f" cannot be started: {err.strerror}."
            ) from err
        self._send(json.dumps(self._orders))
        assert self._process.stdout is not None
        with self._process.stdout:
            is_ready = self._process.stdout.readline() == f"{READY}\n"
        if not is_ready:
            self.__exit__(None, None, None)
            raise UnsuitableError("No boot test: the process that ends it if vbackup is killed has ended. Try again.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_over:
            self._send(DONE)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody has killed it
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def act(self) -> None:
        """Let it do at the end of the block what it does if vbackup is killed: libvirt did not destroy the copy."""
        self._is_over = False

    @property
    def pid(self) -> int:
        """Process id of the guard."""
        return self._process.pid

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
