"""Tell the libvirt daemons of this host to look for hook scripts again.

libvirt looks for them when it starts and when it gets SIGHUP ("systemctl reload libvirtd" is the same); a driver that
had none at that time calls none.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

#: The daemons that have the QEMU driver: the one with all drivers, the one with this alone.
NAMES = ("libvirtd", "virtqemud")


@dataclass(frozen=True)
class Daemon:
    """A libvirt daemon that runs, and whether it was told."""

    name: str
    pid: int
    told: bool


def reload_all() -> tuple[Daemon, ...]:
    """Send SIGHUP to every libvirt daemon of this system, and return all there are.

    One that cannot be sent it (by a user who is not root; while it starts, when it would end it) was not told.
    """
    return tuple(_reload(name, pid) for name, pid in _find())


def _reload(name: str, pid: int) -> Daemon:
    try:
        # A descriptor stays with this process; the pid can be another's in a moment.
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError) as err:  # a kernel, or a build of Python, from before Linux 5.3
        log.debug("process %d: %s", pid, err)
        return Daemon(name, pid, told=False)
    try:
        ready = _name(pid) == name and _handles(pid, signal.SIGHUP)
        if ready:
            signal.pidfd_send_signal(fd, signal.SIGHUP)
        return Daemon(name, pid, told=ready)
    except OSError as err:
        log.debug("process %d: %s", pid, err)
        return Daemon(name, pid, told=False)
    finally:
        os.close(fd)


def _find() -> Iterator[tuple[str, int]]:
    for entry in sorted(Path("/proc").iterdir()):
        if entry.name.isdecimal():
            try:
                name = _name(int(entry.name))
            except OSError as err:
                log.debug("process %s: %s", entry.name, err)  # it has ended, or is not ours to look at
                continue
            if name is not None:
                yield name, int(entry.name)


def _name(pid: int) -> str | None:
    """Of the libvirt daemon of this very system that this process is; None if it is none."""
    proc = Path(f"/proc/{pid}")
    # After an upgrade of the package: "/usr/sbin/libvirtd (deleted)".
    name = os.fspath((proc / "exe").readlink()).rpartition("/")[2].partition(" ")[0]
    if name not in NAMES or proc.stat().st_uid != 0:
        return None
    # Another root directory, another system: that of a container reads its own hooks.
    return name if (proc / "root").samefile("/") else None


def _handles(pid: int, signum: signal.Signals) -> bool:
    """True if it has a handler for the signal (SigCgt in proc(5)), without which the signal would end it."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "SigCgt":
            return bool(int(value, 16) >> (signum - 1) & 1)
    return False
