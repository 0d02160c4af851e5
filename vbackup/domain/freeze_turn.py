"""Take turns at freezing a guest, and remember who froze it: who freezes owns the thaw.

    /run/vbackup/freeze/<domain uuid>    locked (flock) from the look at the guest to its thaw; not empty while a
                                         vbackup may have it frozen: JSON: pid, start_ticks, boot_id

The lock is per domain and host, whichever repository a vbackup works for. A vbackup and its watchdog share one open
file: if the vbackup is killed, the lock lasts until the watchdog has thawed. So a file that is not locked and not empty
is of a vbackup that died together with its watchdog, and the guest may still be frozen by it. For a user other than
root, the directory is below XDG_RUNTIME_DIR.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vbackup import names
from vbackup.files import open_regular
from vbackup.process import Process

log = logging.getLogger(__name__)

#: How long to wait for another vbackup that freezes the same guest. Usually a fraction of a second is enough; members
#: of a group wait for each other for 30 s longer than a freeze may last (vbackup.engine.group.SLACK_S).
WAIT_S = 15.0
#: Pause between two attempts to lock.
TICK_S = 0.05


def directory() -> Path | None:
    """Return the directory of the files, or None if this user has no directory that ends with the boot or session."""
    if os.geteuid() == 0:
        return Path("/run/vbackup/freeze")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime) / "vbackup" / "freeze" if runtime.startswith("/") else None


class FreezeTurn:
    """The turn of this process at freezing domain ``uuid``. The caller closes it.

    Without a directory, or where it cannot be written, nobody is waited for and nothing is remembered: ``marks`` is
    False then, and only the agent's answers tell that somebody else has frozen the guest.
    """

    def __init__(self, uuid: str) -> None:
        self._fd = _open(uuid)

    @property
    def fd(self) -> int | None:
        """The open file, for the watchdog to share; None without one."""
        return self._fd

    @property
    def marks(self) -> bool:
        """True if it is remembered who froze the guest."""
        return self._fd is not None

    def take(self, timeout_s: float = WAIT_S, *, check: Callable[[], None] = lambda: None) -> bool:
        """Wait for the turn; return False if another vbackup keeps it for longer than ``timeout_s`` seconds.

        ``check`` is called while it waits, and may raise.
        """
        if self._fd is None:
            return True
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                check()
                pause.wait(min(TICK_S, left_s))
            else:
                return True

    def may_be_left_frozen(self) -> bool:
        """Return True if a vbackup that is dead did not thaw the guest. Call it in turn, before ``frozen``."""
        return self._fd is not None and os.fstat(self._fd).st_size > 0

    def frozen(self) -> None:
        """Remember that this process is about to freeze the guest."""
        if self._fd is None:
            return
        try:
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, 1)  # the mark itself, which takes no space: /run may be full
            os.pwrite(self._fd, (json.dumps(Process.this().document()) + "\n").encode("ascii"), 0)
        except OSError as err:
            log.debug("no mark of the freeze: %s", err)  # the watchdog thaws without it

    def thawed(self) -> None:
        """Remember that no vbackup has the guest frozen any longer."""
        if self._fd is not None:
            forget(self._fd)

    def end(self) -> None:
        """End the turn, also for the watchdog; the file stays open."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; a watchdog that has to thaw keeps the turn. Closing twice is fine."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def forget(fd: int) -> None:
    """Remember in the open file that nobody has the guest frozen. The watchdog, which has only the file, calls this."""
    try:
        os.ftruncate(fd, 0)
    except OSError as err:
        log.debug("the file says that the guest is frozen: %s", err)


def _open(uuid: str) -> int | None:
    assert names.UUID.fullmatch(uuid)  # libvirt made it
    path = directory()
    if path is None:
        log.debug("no XDG_RUNTIME_DIR: freezes of domain %s take no turns", uuid)
        return None
    try:
        for each in (path.parent, path):
            each.mkdir(mode=0o700, exist_ok=True)
        return open_regular(path / uuid, os.O_RDWR | os.O_CREAT)
    except OSError as err:
        log.debug("freezes of domain %s take no turns: %s", uuid, err)
        return None
