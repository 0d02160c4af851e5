"""Go on in the background once the work is ready, as a daemon does: the command ends, a child remains.

The child is forked before anything was opened, since neither locks of fcntl(2) nor threads are inherited. Until it is
ready it prints what it has to say itself, and the command waits for it and ends with its exit status.
"""

from __future__ import annotations

import os
import select
import sys

from vbackup.errors import VbackupError
from vbackup.stop import Stop


class Background:
    """The child's side."""

    def __init__(self, writing: int) -> None:
        self._writing = writing

    def ready(self) -> None:
        """Let the command end with status 0; nothing is printed from now on."""
        sys.stdout.flush()
        sys.stderr.flush()
        devnull = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(devnull, fd)
        os.close(devnull)
        os.chdir("/")  # or the filesystem that the command was started in could not be unmounted
        os.write(self._writing, b"\0")
        os.close(self._writing)


def start(stop: Stop) -> Background | int:
    """Fork. Return the child's side in the child, and in the command its exit status: the child is ready, or has ended.

    A request to stop is passed on to the child. Raises VbackupError if the child was killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()  # Ctrl-C goes to the command, which passes it on, and the end of the terminal changes nothing
        return Background(writing)
    os.close(writing)
    try:
        return 0 if _is_ready(reading, child, stop) else _status_of(child)
    finally:
        os.close(reading)


def _is_ready(reading: int, child: int, stop: Stop) -> bool:
    """Wait; False if the child has ended, or is about to."""
    with stop.descriptor() as stopping:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        poll.register(stopping, select.POLLIN)
        while True:
            found = [fd for fd, _ in poll.poll()]
            if reading in found:
                return os.read(reading, 1) != b""
            assert stop.signum is not None
            os.kill(child, stop.signum)
            poll.unregister(stopping)


def _status_of(child: int) -> int:
    _, waited = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(waited)
    if status < 0:
        raise VbackupError(f"The process in the background was killed by signal {-status} before it was ready.")
    return status
