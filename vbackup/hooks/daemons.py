"""Make the libvirt daemons of this host look for hook scripts again.

libvirt looks for them when it starts and when it receives SIGHUP, which "systemctl reload libvirtd" sends; a driver
that found none then runs none.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

#: The daemons with the QEMU driver: the one with all drivers, the one with only this driver.
NAMES = ("libvirtd", "virtqemud")


@dataclass(frozen=True)
class Daemon:
    """A running libvirt daemon, and whether it got the signal to look."""

    name: str
    pid: int
    told: bool


def reload_all() -> tuple[Daemon, ...]:
    """Send SIGHUP to every libvirt daemon of this system, and return all daemons.

    A daemon gets none if this user may not send it, or if it is still starting: the signal would end it.
    """
    return tuple(_reload(name, pid) for name, pid in _find())


def _reload(name: str, pid: int) -> Daemon:
    try:
        # The pid can become that of another process at any moment; a descriptor cannot.
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError) as err:  # a kernel, or a Python built for one, older than Linux 5.3
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
                log.debug("process %s: %s", entry.name, err)  # it has ended, or this user may not read it
                continue
            if name is not None:
                yield name, int(entry.name)


def _name(pid: int) -> str | None:
    """Return the name of the libvirt daemon of this system that the process is, or None."""
    proc = Path(f"/proc/{pid}")
    # After an upgrade of the package: "/usr/sbin/libvirtd (deleted)".
    name = os.fspath((proc / "exe").readlink()).rpartition("/")[2].partition(" ")[0]
    if name not in NAMES or proc.stat().st_uid != 0:
        return None
    # A daemon in a container has another root directory, and reads the hooks there.
    return name if (proc / "root").samefile("/") else None


def _handles(pid: int, signum: signal.Signals) -> bool:
    """Return True if the process handles the signal (SigCgt in proc(5)); otherwise the signal would end it."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "SigCgt":
            return bool(int(value, 16) >> (signum - 1) & 1)
    return False
