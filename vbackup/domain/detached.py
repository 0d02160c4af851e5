"""Close the nodes of disks that libvirt detached while a backup job read them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from vbackup.errors import QmpError
from vbackup.qemu import debug_graph
from vbackup.qemu.monitor import Monitor, block_chains, block_nodes

log = logging.getLogger(__name__)


def close_detached(monitor: Monitor, nodes: Mapping[str, str]) -> list[str]:
    """Close the nodes of disks that were detached while our jobs read them; returns their dev.

    ``nodes`` has the node, by dev, of each disk's active layer when the jobs began, in this very QEMU.

    libvirt has told QEMU to close them when it detached the disk, which QEMU refused because of the job, and has
    forgotten them since. Left alone they hold the image's lock, so that it cannot be attached again, and the
    bitmaps are not stored. QEMU refuses to close a node that anything uses.
    """
    in_use = {name for chain in block_chains(monitor).values() for name in chain}
    detached = {dev: name for dev, name in nodes.items() if name not in in_use}
    known = block_nodes(monitor).node_names() if detached else frozenset()
    for name in detached.values():
        left = [name]
        while left:
            # Those below are asked for first: they are not there to be asked about afterwards.
            below = debug_graph.children(monitor)
            one = left.pop(0)
            if not one.startswith("libvirt-") or one not in known:
                continue
            try:
                monitor.execute("blockdev-del", {"node-name": one})
            except QmpError as err:
                log.debug("%s", err)
            else:
                left.extend(below.get(one, ()))
    return list(detached)
