"""Whether QEMU has its images to itself: inactive block nodes, and bitmaps that are stored but not loaded.

While a migration comes in, and after it until the guest runs, QEMU opens images without the right to write them
(BDRV_O_INACTIVE), because the QEMU that the guest comes from still has them. It loads their bitmaps only when it
activates them, and "cont" fails if somebody has added a bitmap of the same name in between ("Bitmap already exists"):
the guest's I/O is dead then. The same holds where the memory went: after a migration, and after a dump or snapshot with
memory of a domain that was paused. Whether it holds for a domain that arrived paused depends on the versions:

- ``virsh migrate --suspend``: inactive with libvirt 9.0 and 12.8 (where QEMU lists the bitmaps that came with the
  migration, and no others); libvirt 11.3 activates the nodes (blockdev-set-active).
- ``virsh restore --paused``: active on QEMU 7.2, inactive on QEMU 10.0.
- ``virsh dump`` and ``snapshot-create-as --memspec`` of a paused domain: inactive with all.

So the run state proves little ("paused" is also a guest that its user has suspended), and query-migrate says
"completed" also after the resume. ``active`` of query-named-block-nodes exists since QEMU 10.0 only. But QEMU has
always taken all permissions from the devices of inactive nodes (blk_root_inactivate in block/block-backend.c), which
x-debug-query-block-graph shows.
"""

from __future__ import annotations

import logging

from vbackup.errors import InactiveError, MalformedError, QmpError
from vbackup.fields import Fields
from vbackup.qemu import debug_graph
from vbackup.qemu.monitor import Monitor

log = logging.getLogger(__name__)

#: Run states in which nodes can only be inactive (QAPI RunState).
_MIGRATING = frozenset(("inmigrate", "finish-migrate", "postmigrate"))


def refuse_inactive(monitor: Monitor, qemu: str, *, resume: str) -> None:
    """Raise InactiveError if QEMU's block nodes are inactive; ``qemu`` begins the message, ``resume`` is the remedy.

    Raises MalformedError if a reply does not match QAPI.
    """
    try:
        without_rights = debug_graph.devices_without_rights(monitor.execute("x-debug-query-block-graph"))
    except QmpError as err:
        log.debug("%s", err)
        if _run_state(monitor) not in _MIGRATING:
            return
    else:
        if not without_rights:
            return
        log.debug("inactive: %s", without_rights)
    raise InactiveError(qemu, _run_state(monitor), resume=resume)


def _run_state(monitor: Monitor) -> str:
    try:
        return Fields(monitor.execute("query-status"), "query-status", MalformedError).text("status")
    except QmpError as err:
        log.debug("%s", err)
        return ""
