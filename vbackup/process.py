"""Tell one process from all others, also after a reboot: pids are used again.

vbackup.repository.journal records who writes it, vbackup.hooks who has a domain's disks open.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vbackup.fields import Fields


@dataclass(frozen=True)
class Process:
    """One process and no other."""

    pid: int
    start_ticks: int  #: field 22 of /proc/PID/stat: clock ticks after the boot
    boot_id: str  #: /proc/sys/kernel/random/boot_id

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None if none lives that has it."""
        try:
            # The second field, the name of the command in parentheses, can have blanks and parentheses in it.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if fields[0] in (b"Z", b"X"):
            return None  # it has ended, and holds nothing open
        return cls(pid, int(fields[19]), boot_id)

    @classmethod
    def this(cls) -> Process:
        """The one that runs this."""
        this = cls.of(os.getpid())
        if this is None:
            raise FileNotFoundError("no /proc, which tells processes apart")
        return this

    @classmethod
    def read(cls, fields: Fields) -> Process:
        """From ``document``; a member that is missing raises the error of ``fields``."""
        return cls(fields.integer("pid"), fields.integer("start_ticks"), fields.text("boot_id"))

    def document(self) -> dict[str, object]:
        """As a JSON object."""
        return asdict(self)

    @property
    def lives(self) -> bool:
        """True while it runs."""
        return Process.of(self.pid) == self

    @property
    def is_of_this_boot(self) -> bool:
        """False if the host was started anew since, or it is another host."""
        this = Process.of(os.getpid())
        return this is not None and this.boot_id == self.boot_id
