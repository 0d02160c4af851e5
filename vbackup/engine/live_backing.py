"""Put an NBD node that reconnects below a disk whose backing file libvirt has opened as an export.

libvirt 9.0 has no word for reconnect-delay (<reconnect> is refused for such a disk), and a node without it is of no use
any more when its server has ended. Ours waits instead: the guest's reads of what is not at home stand still until
somebody serves the export again, and its writes go on.

It must never give up. While a block job streams, QEMU's copy-on-read filter takes a query of the allocation that fails
for the end of the backing file, and lets the guest's read succeed without data (cor_co_preadv_part in
block/copy-on-read.c, n == 0; QEMU 7.2), whatever rerror says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vbackup.domain.live_xml import FormatOptions
from vbackup.errors import QmpError
from vbackup.model import BlockDriver
from vbackup.qemu import debug_graph
from vbackup.qemu.monitor import Monitor, block_graph

#: reconnect-delay: a year, after which nobody comes back.
RECONNECT_S = 365 * 24 * 3600
#: How long opening the export may take: QEMU stands still meanwhile (the guest does not run yet, or waits for it).
OPEN_S = 10
_PREFIX = "vbackup-live-"


def node_name(dev: str) -> str:
    """Return the name of our node below disk ``dev``. It is of no repository, so no backup takes it for a leftover."""
    return f"{_PREFIX}{dev}"


@dataclass(frozen=True)
class Overlay:
    """The active image of a disk as it is open in QEMU, from before a pull began.

    At the end of a pull, until libvirt has dismissed the job, QEMU must not be asked for its nodes: one is the job's
    filter, which has no child any more, and QEMU 7.2 crashes (query-named-block-nodes, in bdrv_refresh_filename).
    """

    dev: str
    options: Mapping[str, object]  #: QAPI BlockdevOptions of its node, without the backing file


def overlay(monitor: Monitor, dev: str, alias: str, options: FormatOptions) -> Overlay:
    """Return the active image of the device ``alias``; no pull may be running.

    ``options`` is what QEMU does not tell of its qcow2 node.
    """
    chain = block_graph(monitor).chains.get(alias, ())
    entries = {one["node-name"]: one for one in monitor.execute("query-named-block-nodes", {"flat": True})}
    top = next(one for one in chain if entries[one]["drv"] == BlockDriver.QCOW2.name)
    (storage,) = (one for one in debug_graph.children(monitor).get(top, ()) if one not in chain)
    cache, detect_zeroes = entries[top]["cache"], entries[top]["detect_zeroes"]
    opened = {
        "driver": "qcow2",
        "node-name": top,
        "file": storage,
        "read-only": False,
        "cache": {name: cache[name] for name in ("direct", "no-flush")},
        "detect-zeroes": detect_zeroes,
    }
    return Overlay(dev, {**opened, **options.document()})


def put_below(monitor: Monitor, disk: Overlay, socket: str) -> None:
    """Make a node that reconnects to the export of the disk's name the backing file; no pull may be running.

    Raises QmpError if QEMU refuses; nothing has changed then.
    """
    name = node_name(disk.dev)
    is_new = name not in block_graph(monitor).node_names()
    if is_new:
        server = {"type": "unix", "path": socket}
        waiting = {"reconnect-delay": RECONNECT_S, "open-timeout": OPEN_S}
        node = {"driver": "nbd", "node-name": name, "read-only": True, "server": server, "export": disk.dev, **waiting}
        monitor.execute("blockdev-add", node)
    try:
        _reopen(monitor, disk, backing=name)
    except QmpError:
        if is_new:
            monitor.execute("blockdev-del", {"node-name": name})
        raise


def store(monitor: Monitor, disk: Overlay) -> None:
    """Put all that the active image of a disk holds, which has no backing file any more, on storage.

    At the end of its job QEMU takes the backing file out of the header, while the tables that lead to the data may only
    be in its memory: if it dies then, the image is left with holes (seen with kill -9, QEMU 7.2). A reopen flushes them
    (bdrv_reopen_prepare in QEMU's block.c). Raises QmpError.
    """
    _reopen(monitor, disk, backing=None)


def remove(monitor: Monitor, dev: str) -> None:
    """Remove our node of a disk whose data is at home; libvirt does not know it. Raises QmpError if it is in use."""
    try:
        monitor.execute("blockdev-del", {"node-name": node_name(dev)})
    except QmpError as err:
        if not err.description.is_no_node:
            raise


def _reopen(monitor: Monitor, disk: Overlay, *, backing: str | None) -> None:
    monitor.execute("blockdev-reopen", {"options": [{**disk.options, "backing": backing}]})
