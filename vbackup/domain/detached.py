"""Close the nodes of disks that libvirt detached while a backup job read them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from vbackup.errors import QmpError
from vbackup.qemu import debug_graph
from vbackup.qemu.monitor import Monitor, block_chains, block_nodes

log = logging.getLogger(__name__)


def close_detached(monitor: Monitor, nodes: Mapping[str, str]) -> list[str]:
    """Close the nodes of disks that were detached while vbackup's jobs read them, and return the devs of these disks.

    ``nodes`` has the node of each disk's active layer when the jobs began, by dev, in this same QEMU process.

    When libvirt detached the disk it asked QEMU to close them; QEMU refused because of the job, and libvirt no longer
    knows them. If they stayed open, the image would stay locked and could not be attached again, and the bitmaps would
    not be stored. QEMU refuses to close a node that is in use.
    """
    in_use = {name for chain in block_chains(monitor).values() for name in chain}
    detached = {dev: name for dev, name in nodes.items() if name not in in_use}
    open_nodes = block_nodes(monitor).node_names() if detached else frozenset()
    for top in detached.values():
        left = [top]
        while left:
            # Queried before the node is closed: afterwards QEMU no longer knows what was below it.
            children = debug_graph.children(monitor)
            name = left.pop(0)
            if not name.startswith("libvirt-") or name not in open_nodes:
                continue
            try:
                monitor.execute("blockdev-del", {"node-name": name})
            except QmpError as err:
                log.debug("%s", err)
            else:
                left.extend(children.get(name, ()))
    return list(detached)
