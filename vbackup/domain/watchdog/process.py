"""The watchdog process: wait, thaw if vbackup has not, and end.

vbackup.domain.watchdog is the other side and describes the protocol; vbackup.domain.freeze knows how to thaw.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import syslog
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vbackup.domain import freeze_turn
from vbackup.domain.freeze import Thaw, Thawed, thaw
from vbackup.errors import DomainGoneError, DomainNotFoundError, VbackupError

if TYPE_CHECKING:
    from vbackup.domain.freeze import Agent

#: What vbackup sends.
FREEZING, THAWED = "freezing", "thawed"
#: What the process sends: it can thaw at any time, or only after vbackup has ended.
READY, BLIND = "ready", "blind"
#: The exit status of a process that has thawed the guest.
THAWED_STATUS = 10
#: How long to retry an agent that does not answer: a guest may hang for minutes, and freeze when it continues.
GIVE_UP_S = 300.0
#: Pause between two attempts to connect: the first and the longest. Each attempt makes libvirt register the embedded
#: driver again, and it has room for a few dozen registrations.
CONNECT_AGAIN_S, CONNECT_AGAIN_MAX_S = 0.1, 30.0


class Pipe:
    """The lines that vbackup sends."""

    def __init__(self, fd: int) -> None:
        self._file = open(fd, "rb", buffering=0, closefd=False)  # noqa: SIM115 - open for the life of the process
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def next_line(self, timeout_s: float | None = None) -> str | None:
        """Return the next line, "" if vbackup has ended, or None if nothing came within ``timeout_s`` seconds.

        A ``timeout_s`` of None means no limit.
        """
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return None
        return self._file.readline().decode().strip()  # lines are never split: they are shorter than PIPE_BUF


def main(*, uri: str, uuid: str, limit_s: int, is_blind: bool, turn_fd: int | None) -> None:
    """Run the watchdog on stdin and stdout; the parameters are the orders (see vbackup.domain.watchdog.Watchdog).

    ``turn_fd`` is the file of vbackup's turn to freeze, which lasts until this process ends.
    """
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # vbackup may have got it too, and then ends the pipe
    os.chdir("/")
    thawed = watch(Pipe(0), lambda: _connect(uri, uuid), _tell, _log, limit_s=limit_s, is_blind=is_blind)
    if thawed:
        if turn_fd is not None:
            freeze_turn.forget(turn_fd)
        sys.exit(THAWED_STATUS)


def watch(
    vbackup: Pipe,
    connect: Callable[[], Agent],
    tell: Callable[[str], None],
    log: Callable[[str], None],
    *,
    limit_s: float,
    is_blind: bool,
    give_up_s: float = GIVE_UP_S,
) -> bool:
    """Connect, wait, and thaw if ``vbackup`` does not end the freeze within ``limit_s`` seconds, or dies.

    ``connect`` returns the guest agent and raises VbackupError; ``tell`` sends a line to vbackup; ``log`` records what
    the process did. With ``is_blind`` it connects only after vbackup has ended. It gives up ``give_up_s`` seconds
    after the thaw was due. Returns True if it had to thaw, and the guest is not frozen any longer.
    """
    agent: Agent | None = None
    if not is_blind:
        try:
            agent = connect()
        except VbackupError as err:
            tell(" ".join(str(err).split()))
            return False
    tell(BLIND if is_blind else READY)
    if vbackup.next_line() != FREEZING:
        return False  # nothing was frozen
    line = vbackup.next_line(limit_s)
    reason = "was not thawed within the limit" if line is None else "was left frozen by a vbackup process that ended"
    if line is None and is_blind:
        line = vbackup.next_line()
    if line == THAWED:
        return False
    thawed = _thaw(agent, connect, give_up_s)
    log(f"{reason}: {_RESULTS[thawed.how]}")
    return thawed.how is not Thaw.NO_ANSWER


def _thaw(agent: Agent | None, connect: Callable[[], Agent], give_up_s: float) -> Thawed:
    deadline = time.monotonic() + give_up_s
    pause = threading.Event()
    pause_s = CONNECT_AGAIN_S
    while agent is None:
        try:
            agent = connect()
        except (DomainGoneError, DomainNotFoundError):
            return Thawed(Thaw.GONE)
        except VbackupError as err:
            if time.monotonic() >= deadline:
                return Thawed(Thaw.NO_ANSWER, error=str(err))
            pause.wait(pause_s)  # the dying process may still hold the driver
            pause_s = min(2 * pause_s, CONNECT_AGAIN_MAX_S)
    return thaw(agent, sure=False, deadline_s=deadline - time.monotonic())


_RESULTS = {
    Thaw.DONE: "thawed by the watchdog",
    Thaw.NOTHING_FROZEN: "it was no longer frozen",
    Thaw.REFUSED: "its agent refused to thaw, and reports that nothing is frozen",
    Thaw.GONE: "it has ended",
    Thaw.NO_ANSWER: "its agent does not answer; it may be frozen, run 'virsh domfsthaw'",
}


def _connect(uri: str, uuid: str) -> Agent:
    # Imported here: vbackup.domain.watchdog imports this module and does not need libvirt.
    from vbackup.domain import host, passthrough

    return passthrough.Passthrough(host.Host(uri).domain(uuid))


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # vbackup has ended
        os.write(1, f"{line}\n".encode())


def _log(message: str) -> None:
    """Write to the system log: vbackup may have ended, and its output with it."""
    syslog.openlog("vbackup", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, f"the guest {message}")
