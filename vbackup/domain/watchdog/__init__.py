"""A process that thaws the guest when vbackup cannot: because it was killed, or because it hangs.

    freeze      freezes and thaws; tells its Thawer, which is the Watchdog here, before and after
    __init__    starts the process and speaks to it
    __main__    the process: finds the package, and hands over to
    process     waits for the end of the freeze, of the limit, or of vbackup, and thaws

The two have a pair of pipes. Down go one JSON line (the orders), then FREEZING and THAWED; up comes one line,
READY, BLIND or why it cannot. A pipe keeps what was written after its writer was killed, so whoever dies after
FREEZING has told it; and its end is the news of any death.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from vbackup.domain.watchdog.process import BLIND, FREEZING, READY, THAWED

log = logging.getLogger(__name__)

#: A process that is not ready by then is not relied on: it starts in a fraction of a second.
READY_S = 10.0
#: How long it may take to end when there is nothing to thaw.
END_S = 5.0
PROGRAM = Path(__file__).with_name("__main__.py")


class Watchdog:
    """The process, seen from vbackup (see vbackup.domain.freeze.Thawer). Close it in the end.

    It starts at once and gets ready while other things are done. ``uri`` is that of an open connection, ``uuid``
    the domain's. ``is_blind``: the driver of ``uri`` is in this process, so no other can use it meanwhile.
    """

    def __init__(self, *, uri: str, uuid: str, limit_s: int, is_blind: bool) -> None:
        self.limit_s = limit_s
        self.is_blind = is_blind
        self._reason: str | None = None
        self._is_ready = False
        self._may_be_frozen = False
        self._process: subprocess.Popen[bytes] | None = None
        orders = {
            "sys_path": [os.fspath(Path(path).absolute()) for path in sys.path],
            "uri": uri,
            "uuid": uuid,
            "limit_s": limit_s,
            "is_blind": is_blind,
        }
        try:
            self._process = subprocess.Popen(
                # By its path and isolated: what it imports comes from our own sys.path and from nowhere else.
                [sys.executable, "-I", os.fspath(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it may outlive us, and whoever reads our stderr waits for its end
                bufsize=0,
                start_new_session=True,  # what is sent to our process group must not end it
            )
        except OSError as err:
            self._reason = f"{sys.executable or 'Python'} cannot be started: {err.strerror}"
            return
        self._tell(json.dumps(orders))

    @property
    def pid(self) -> int | None:
        """Of the process; None where it could not be started."""
        return None if self._process is None else self._process.pid

    def reason_not_to_freeze(self) -> str | None:
        """See Thawer. Waits until the process is ready."""
        if self._reason is None and not self._is_ready:
            said = self._answer(READY_S)
            self._is_ready = said in (READY, BLIND)
            if not self._is_ready:
                self._reason = said or "it ended too early"
        if self._reason is None and (self._process is None or self._process.poll() is not None):
            self._reason = "it was killed"
        return f"the watchdog that would thaw them is not ready: {self._reason}" if self._reason else None

    def freezing(self) -> None:
        """See Thawer."""
        self._may_be_frozen = True
        self._tell(FREEZING)

    def thawed(self) -> None:
        """See Thawer."""
        self._tell(THAWED)
        self._may_be_frozen = False

    def let_go(self) -> None:
        """The freeze is over: it ends, or thaws first where the guest may be frozen. Does not wait for it."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def close(self) -> None:
        """Let it end; closing twice is fine. Where the guest may be frozen it goes on alone, and ends by itself."""
        process = self._process
        if process is None:
            return
        self.let_go()
        assert process.stdout is not None
        process.stdout.close()
        self._process = None
        if self._may_be_frozen:
            _LEFT.append(process)
            return
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            log.debug("watchdog %d does not end", process.pid)  # it is connecting, or waits for the agent
            process.kill()
            process.wait()

    def _tell(self, line: str) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
        except OSError as err:
            log.debug("watchdog %d is not there: %s", self._process.pid, err)  # seen in reason_not_to_freeze

    def _answer(self, timeout_s: float) -> str:
        """The one line that it says; what went wrong instead of it."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        said = b""
        while not said.endswith(b"\n"):
            if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
                return f"it did not start within {timeout_s:.0f} s"
            more = os.read(fd, 4096)
            if not more:
                break
            said += more
        return said.decode(errors="replace").strip()


#: Those that went on alone: a Popen that is forgotten complains that its process still runs.
_LEFT: list[subprocess.Popen[bytes]] = []
