"""Keep others from writing to the images of a domain that is off while a pull session serves them.

An NBD export shares its node with writers. So only those images are locked whose format does it: qcow2 does for its own
file, but not raw, and nothing does for a backing file. A quorum lets nobody write to its children (quorum_child_perm in
QEMU's block/quorum.c), and QEMU locks the files of all that is below accordingly; that it has only one child, and that
nobody reads from it, makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from vbackup.engine.session_plan import SessionDiskPlan
from vbackup.errors import UnsuitableError
from vbackup.names import Naming
from vbackup.qemu.monitor import Monitor, schema
from vbackup.qemu.storage_daemon import PROGRAM

DRIVER = "quorum"


def lock(monitor: Monitor, disks: Sequence[SessionDiskPlan], naming: Naming) -> None:
    """Lock the images of disks that are open only for reading, until the daemon ends.

    Raises UnsuitableError if the daemon cannot, QmpError if another process has one open for writing
    (``description.is_of_lock``).
    """
    if DRIVER not in schema(monitor).block_drivers():
        raise UnsuitableError(
            f"{PROGRAM} lacks the block driver {DRIVER}, without which it could not keep others from writing to the"
            " images of a domain that is off. Start the domain, or use 'vbackup backup'."
        )
    for index, disk in enumerate(disks):
        monitor.execute(
            "blockdev-add",
            {
                "driver": DRIVER,
                "node-name": naming.lock_node(index),
                "read-only": True,
                "children": [disk.exported],
                "vote-threshold": 1,
            },
        )
