"""The watchdog's own side: wait, thaw if nobody else has, and end.

vbackup.domain.watchdog has the other side and the words that both use; vbackup.domain.freeze knows how to thaw.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import syslog
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vbackup.domain.freeze import Thaw, Thawed, thaw
from vbackup.errors import DomainGoneError, DomainNotFoundError, VbackupError

if TYPE_CHECKING:
    from vbackup.domain.freeze import Agent

FREEZING, THAWED = "freezing", "thawed"
READY, BLIND = "ready", "blind"
#: For how long an agent that does not answer is asked: a guest may hang for minutes, and freeze when it goes on.
GIVE_UP_S = 300.0
#: Between two tries to connect: the first, and the longest. libvirt registers the embedded driver anew at every try,
#: and has room for some dozens.
CONNECT_AGAIN_S, CONNECT_AGAIN_MAX_S = 0.1, 30.0


class Pipe:
    """What vbackup says, line by line."""

    def __init__(self, fd: int) -> None:
        self._file = open(fd, "rb", buffering=0, closefd=False)  # noqa: SIM115 - as long as this process
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def next_line(self, timeout_s: float | None = None) -> str | None:
        """The next line, "" when vbackup has ended, None if nothing came in time."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return None
        return self._file.readline().decode().strip()  # lines come whole: they are shorter than PIPE_BUF


def main(*, uri: str, uuid: str, limit_s: int, is_blind: bool) -> None:
    """The process, once it has its orders."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # it ends with vbackup, which may have got the same signal
    os.chdir("/")
    watch(Pipe(0), lambda: _connect(uri, uuid), _tell, _log, limit_s=limit_s, is_blind=is_blind)


def watch(
    vbackup: Pipe,
    connect: Callable[[], Agent],
    tell: Callable[[str], None],
    log: Callable[[str], None],
    *,
    limit_s: float,
    is_blind: bool,
    give_up_s: float = GIVE_UP_S,
) -> None:
    """Get ready, wait, and thaw if the freeze is not ended by ``vbackup`` within ``limit_s``."""
    agent: Agent | None = None
    if not is_blind:
        try:
            agent = connect()
        except VbackupError as err:
            tell(" ".join(str(err).split()))
            return
    tell(BLIND if is_blind else READY)
    if vbackup.next_line() != FREEZING:
        return  # nothing was frozen
    said = vbackup.next_line(limit_s)
    why = "was not thawed within its limit" if said is None else "was left frozen by a vbackup that ended"
    if said is None and is_blind:
        said = vbackup.next_line()
    if said == THAWED:
        return
    done = _thaw(agent, connect, give_up_s)
    log(f"{why}: {_RESULTS[done.how]}")


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
            pause.wait(pause_s)  # the dead process may still hold the driver
            pause_s = min(2 * pause_s, CONNECT_AGAIN_MAX_S)
    return thaw(agent, sure=False, deadline_s=deadline - time.monotonic())


_RESULTS = {
    Thaw.DONE: "thawed by the watchdog",
    Thaw.NOTHING_FROZEN: "it was not frozen any more",
    Thaw.REFUSED: "its agent refuses to thaw, and says that nothing is frozen",
    Thaw.GONE: "it has ended",
    Thaw.NO_ANSWER: "its agent does not answer; it may be frozen, run 'virsh domfsthaw'",
}


def _connect(uri: str, uuid: str) -> Agent:
    # Imported when needed: the other side of this package has no use for libvirt.
    from vbackup.domain.host import Host
    from vbackup.domain.passthrough import Passthrough

    return Passthrough(Host(uri).domain(uuid))


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more
        os.write(1, f"{line}\n".encode())


def _log(message: str) -> None:
    """To the system's log: vbackup's own output is vbackup's, which may be dead."""
    syslog.openlog("vbackup", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, f"the guest {message}")
