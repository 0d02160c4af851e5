"""Who writes a journal, and whether it lives: what tells where a lock does not lock.

A lock that works makes this unnecessary: whoever has it knows that the writer is dead. But on some network and FUSE
filesystems flock(2) succeeds for everybody, or only the processes of one host see each other's locks. So a journal
names its writer, which touches it every BEAT_S seconds while it works. A process of this host is looked up; for any
other the last touch counts, by the filesystem's own clock, since those of two hosts may differ.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vbackup import machine
from vbackup.fields import Fields
from vbackup.process import Process

log = logging.getLogger(__name__)

#: How often a living writer touches its journal.
BEAT_S = 15.0
#: A writer that cannot be looked up is dead this long after its last touch. Attributes that a client of NFS has cached
#: can be a minute old, and storage may hang for a while.
DEAD_S = 300.0


@dataclass(frozen=True)
class Writer:
    """The process that writes a journal, and where it runs."""

    process: Process
    host: str | None = None  #: name of the host; None in a journal of an older version, which is not touched either
    machine_id: str | None = None  #: machine-id(5); None if the host or container has none
    pid_namespace: int | None = None  #: inode of /proc/self/ns/pid: the same pid elsewhere is another process

    @classmethod
    def this(cls) -> Writer:
        """Return the current process. Raises FileNotFoundError without /proc."""
        host = machine.this_host()
        return cls(Process.this(), host.name, host.machine_id, Path("/proc/self/ns/pid").stat().st_ino)

    @classmethod
    def read(cls, fields: Fields) -> Writer:
        """Return the writer described by the JSON object of ``document``; a wrong member raises ``fields``' error."""
        return cls(
            Process.read(fields),
            fields.optional_text("host"),
            fields.optional_text("machine_id"),
            fields.integer("pid_namespace") if "pid_namespace" in fields else None,
        )

    def document(self) -> dict[str, object]:
        """Return it as a JSON object."""
        where = {"host": self.host, "machine_id": self.machine_id, "pid_namespace": self.pid_namespace}
        return {**self.process.document(), **{name: value for name, value in where.items() if value is not None}}

    @property
    def is_of_this_boot(self) -> bool:
        """False if the host has rebooted since, or the process was on another host."""
        return self.process.is_of_this_boot

    @property
    def is_of_this_host(self) -> bool:
        """True if it ran on this host, in this boot or an earlier one; False also if that is not known."""
        this = Writer.this()
        return self.is_of_this_boot or (
            self.machine_id is not None and (self.host, self.machine_id) == (this.host, this.machine_id)
        )

    @property
    def is_this_process(self) -> bool:
        """True if it is the current process, now or earlier."""
        this = Writer.this()
        return self.process == this.process and self.pid_namespace in (None, this.pid_namespace)

    def sign_of_life(self, silent_s: float, *, has_lock: bool, presume_dead: bool = False) -> str | None:
        """Return who the writer is if it lives, and what can be done about it; None if it is dead.

        ``silent_s`` is how long ago it touched its journal. With ``has_lock`` this process has the lock that the writer
        would have, and that lock works among the processes of this host. ``presume_dead``: so is a writer that cannot
        be looked up.
        """
        if self.is_this_process:
            return None  # an earlier attempt of this process, which has the lock again
        this = Writer.this()
        is_of_this_namespace = self.pid_namespace in (None, this.pid_namespace)
        if self.is_of_this_boot:
            if is_of_this_namespace:
                return f"process {self.process.pid} of this host" if self.process.lives else None
            if has_lock:
                return None
        elif self.host is None or (self.is_of_this_host and silent_s > _uptime_s()):
            return None  # it ended when this host was shut down, and not another host with the same machine id
        if presume_dead or silent_s >= DEAD_S:
            return None
        where = "in another container of this host" if self.is_of_this_boot else f"on host {self.host}"
        return (
            f"process {self.process.pid} {where}, which was last seen at work {max(0, round(silent_s))} s ago (if it is"
            f" dead, 'vbackup recover --force' recovers the backup now, and any vbackup does {DEAD_S / 60:.0f} minutes"
            " after that)"
        )


def terminate(writer: Writer) -> bool:
    """Ask a writer of this host to end, which undoes what it has begun; return False if there is none to ask."""
    this = Writer.this()
    is_here = writer.is_of_this_boot and writer.pid_namespace == this.pid_namespace
    return is_here and writer.process != this.process and writer.process.terminate()


class Pulse:
    """Touches an open file every BEAT_S seconds until it is stopped, whatever the process waits for meanwhile.

    The file's time of modification is set to "now" by the filesystem, not by this host. ``fd`` stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; storage that hangs is not waited for."""
        self._stopped.set()
        self._thread.join(timeout=1.0)

    def _beat(self) -> None:
        try:
            while not self._stopped.wait(BEAT_S):
                try:
                    os.utime(self._fd)
                except OSError as err:
                    log.debug("journal not touched: %s", err)
        finally:
            os.close(self._fd)


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
