"""End exports of a QEMU's NBD server, and wait for that: until then a node above an image keeps it as it is."""

from __future__ import annotations

import threading
import time

from vbackup.errors import MalformedError, StorageError
from vbackup.fields import objects
from vbackup.qemu.monitor import Monitor

#: How long QEMU may take to end an export, whose requests may wait for storage, and how often to look.
REMOVAL_S, TICK_S = 30.0, 0.01


def end(monitor: Monitor, export: str) -> None:
    """End an export whatever its clients do, and return when its node can be resized, reopened and closed.

    Raises StorageError if that takes too long, QmpError if there is no such export.
    """
    monitor.execute("block-export-del", {"id": export, "mode": "hard"})
    deadline, pause = time.monotonic() + REMOVAL_S, threading.Event()
    while export in ids(monitor):
        if time.monotonic() >= deadline:
            raise StorageError(
                f"QEMU did not end the export {export} of an image within {REMOVAL_S:.0f} s; look for hanging storage"
                " on the host that has the image, and run the same command again."
            )
        pause.wait(TICK_S)


def ids(monitor: Monitor) -> list[str]:
    """Return the ids of the exports that QEMU has."""
    reply = monitor.execute("query-block-exports")
    return [entry.text("id") for entry in objects(reply, "query-block-exports", MalformedError)]
