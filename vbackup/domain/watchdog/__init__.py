"""A process that thaws the guest when vbackup cannot: because it was killed, or because it hangs.

    freeze      freezes and thaws; notifies its Thawer, here the Watchdog, before and after
    __init__    starts the process and talks to it
    __main__    the entry point of the process: sets sys.path, then runs process.main
    process     waits for the thaw, the limit or the end of vbackup, and thaws if necessary

vbackup and the process share two pipes. vbackup sends one JSON line (the orders), then FREEZING and THAWED. The
process sends one line: READY, BLIND, or why it cannot thaw. A pipe keeps its data after the writer was killed, so
FREEZING arrives even if vbackup dies right after it; end of file means that vbackup has ended. They also share the
file of vbackup's turn to freeze (vbackup.domain.freeze_turn).
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vbackup.domain import freeze_turn
from vbackup.domain.freeze_turn import FreezeTurn
from vbackup.domain.watchdog.process import BLIND, FREEZING, READY, THAWED, THAWED_STATUS

log = logging.getLogger(__name__)

#: How long the process may take to get ready; usually a fraction of a second.
READY_S = 10.0
#: How often to look meanwhile whether vbackup is asked to stop.
TICK_S = 0.25
#: How long the process may take to end when there is nothing to thaw.
END_S = 5.0
PROGRAM = Path(__file__).with_name("__main__.py")


class Watchdog:
    """vbackup's handle on the process; a Thawer (vbackup.domain.freeze). The caller closes it.

    The process starts at once and gets ready in the background. ``uri`` is the URI of an open connection to libvirt,
    ``uuid`` the domain's UUID, ``limit_s`` how many seconds the guest may be frozen. ``is_blind`` is True if the
    driver of ``uri`` runs in this process, so that no other process can use it at the same time. ``check`` is called
    while the process, or the turn to freeze, is waited for; it raises if vbackup is asked to stop.
    """

    def __init__(
        self, *, uri: str, uuid: str, limit_s: int, is_blind: bool, check: Callable[[], None] = lambda: None
    ) -> None:
        self.limit_s = limit_s
        self.is_blind = is_blind
        self._check = check
        self._reason: str | None = None
        self._is_ready = False
        self._may_be_frozen = False
        self._has_frozen = False
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = FreezeTurn(uuid)
        orders = {
            "sys_path": [os.fspath(Path(path).absolute()) for path in sys.path],
            "uri": uri,
            "uuid": uuid,
            "limit_s": limit_s,
            "is_blind": is_blind,
            "turn_fd": self._turn.fd,
        }
        try:
            self._process = subprocess.Popen(
                # Run by path and isolated (-I): it imports only from this process's sys.path, which the orders contain.
                [sys.executable, "-I", os.fspath(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it may outlive vbackup, whose stderr would then stay open
                bufsize=0,
                pass_fds=() if self._turn.fd is None else (self._turn.fd,),
                start_new_session=True,  # a signal to vbackup's process group must not end it
            )
        except OSError as err:
            self._reason = f"{sys.executable or 'Python'} cannot be started: {err.strerror}"
            return
        self._send(json.dumps(orders))

    @property
    def pid(self) -> int | None:
        """Process id, or None if the process could not be started."""
        return None if self._process is None else self._process.pid

    def reason_not_to_freeze(self) -> str | None:
        """Wait until the process is ready, at most READY_S seconds, and for the turn; return why not, or None."""
        if self._reason is None and not self._is_ready:
            answer = self._answer(READY_S)
            self._is_ready = answer in (READY, BLIND)
            if not self._is_ready:
                self._reason = answer or "it ended too early"
        if self._reason is None and (self._process is None or self._process.poll() is not None):
            self._reason = "it was killed"
        if self._reason is None and not self._turn.take(check=self._check):
            return f"another vbackup has been freezing this guest for more than {freeze_turn.WAIT_S:.0f} s"
        return f"the watchdog that would thaw them is not ready: {self._reason}" if self._reason else None

    @property
    def marks(self) -> bool:
        """True if it is remembered on this host that this vbackup has the guest frozen."""
        return self._turn.marks

    def may_be_left_frozen(self) -> bool:
        """Return True if a vbackup that died with its watchdog did not thaw the guest."""
        return self._turn.may_be_left_frozen()

    def freezing(self) -> None:
        """Tell the process that the guest may be frozen from now on."""
        self._may_be_frozen = self._has_frozen = True
        self._turn.frozen()
        self._send(FREEZING)

    def thawed(self) -> None:
        """Tell the process that the guest is not frozen; it ends by itself, and with it the turn.

        If the limit has just expired, it may be thawing: the next to freeze must not be thawed by it.
        """
        self._send(THAWED)
        self._may_be_frozen = False
        self._turn.thawed()

    def has_thawed(self) -> bool:
        """Return True if the process has ended after it had thawed the guest."""
        return self._process is not None and self._process.poll() == THAWED_STATUS

    def let_go(self) -> None:
        """Release the process without waiting: it ends, after a thaw if the guest may still be frozen."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
        if not self._has_frozen:
            self._turn.end()
        self._turn.close()

    def close(self) -> None:
        """Release the process and wait until it ends; closing twice is fine.

        If the guest may still be frozen, there is no wait: the process goes on thawing alone and ends by itself.
        """
        process = self._process
        self.let_go()
        if process is None:
            return
        assert process.stdout is not None
        process.stdout.close()
        self._process = None
        if self._may_be_frozen:
            _LEFT.append(process)
            return
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            log.debug("watchdog %d does not end", process.pid)  # it is connecting to libvirt
            process.kill()
            process.wait()

    def _send(self, line: str) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
        except OSError as err:
            log.debug("watchdog %d has ended: %s", self._process.pid, err)  # reason_not_to_freeze reports it

    def _answer(self, timeout_s: float) -> str:
        """Return the line that the process sends, or why none came; "" if it ended without one."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        answer = b""
        while not answer.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if not poll.poll(max(0, min(left_s, TICK_S)) * 1000):
                if left_s <= 0:
                    return f"it did not start within {timeout_s:.0f} s"
                self._check()
                continue
            more = os.read(fd, 4096)
            if not more:
                break
            answer += more
        return answer.decode(errors="replace").strip()


#: Processes left to thaw alone. A Popen that is garbage-collected while its process runs gives a ResourceWarning.
_LEFT: list[subprocess.Popen[bytes]] = []
