"""End a mount: ``vbackup umount``.

The disks are unmounted first, which the kernel refuses while somebody reads one, and then the process that shows them
ends. If it was killed, what it has left is removed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup import files
from vbackup.errors import BusyError, StorageError, VbackupError
from vbackup.images import mount_lock, mount_place, mount_points
from vbackup.stop import Stop

#: How long the process that shows the disks may take to end: more than it waits for the storage daemon.
END_S = 90.0
TICK_S = 0.25


@dataclass(frozen=True)
class UmountRequest:
    """The options of ``vbackup umount``."""

    directory: Path
    is_forced: bool = False  #: also while somebody reads a disk, who gets errors then


@dataclass(frozen=True)
class Unmounted:
    """What was done."""

    directory: Path
    was_dead: bool  #: the process that had shown the disks had been killed


def run(request: UmountRequest, *, stop: Stop) -> Unmounted:
    """Unmount, and return when nothing is left of it.

    Raises StorageError if no backup is mounted there or the user may not end it, BusyError if a disk is read,
    VbackupError if the process that shows the disks does not end, InterruptedBySignalError.
    """
    directory = mount_place.refuse_unmounted(request.directory)
    holder = mount_lock.holder(directory)
    if holder == 0:
        raise BusyError(
            f"The process that has mounted a backup at {directory} is in another container; run the command there."
        )
    mounted = mount_points.mounted_in(directory)
    if not request.is_forced:
        mount_points.refuse_busy(mounted)  # all of them, before the first is unmounted
    for path in mounted:
        mount_points.unmount(path, is_forced=request.is_forced)
    if holder is not None:
        _end(holder, directory, stop)
    _clear(directory)
    return Unmounted(directory, was_dead=holder is None)


def _end(pid: int, directory: Path, stop: Stop) -> None:
    """Let the process end that has the directory, and wait for that."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if mount_lock.holder(directory) != pid:
            return  # it has ended, and its pid may be that of another process
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
        _wait(process, pid, directory, stop)
    except PermissionError as err:
        owner = files.user_name(Path(f"/proc/{pid}").stat().st_uid)
        raise StorageError(
            f"Process {pid}, which shows the disks in {directory}, belongs to {owner}: run this as {owner}, or as root."
        ) from err
    finally:
        os.close(process)


def _wait(process: int, pid: int, directory: Path, stop: Stop) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    deadline = time.monotonic() + END_S
    while not poll.poll(TICK_S * 1000):
        stop.check()
        if time.monotonic() > deadline:
            raise VbackupError(
                f"Process {pid}, which shows the disks in {directory}, has not ended within {END_S:.0f} s; the storage"
                " of the repository may hang. Run the same command again when it answers."
            )


def _clear(directory: Path) -> None:
    """Remove what a process that was killed has left."""
    if (directory / mount_lock.NAME).exists():
        with suppress(BusyError):  # it is mounted again
            with mount_lock.held(directory) as goes:
                mount_place.clear(directory)
            if goes:
                mount_place.remove(directory)
