"""The bitmaps, jobs and nodes of ours in a running QEMU: what is superseded or was left behind.

Everything of ours is known by its name (vbackup.names). The domain's lock in the repository is held
while this runs, so what no committed backup accounts for belongs to a run that is dead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from vbackup import names
from vbackup.errors import QmpError
from vbackup.images import targets
from vbackup.model import Bitmap, DiskNode, NodeBitmap
from vbackup.names import BitmapName, EndMark, Naming
from vbackup.qapi.actions import BlockDirtyBitmapRemove
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor, block_nodes
from vbackup.repository.history import History

log = logging.getLogger(__name__)


def remove_bitmaps(monitor: Monitor, bitmaps: Collection[NodeBitmap]) -> None:
    """Remove those of the bitmaps that are there.

    If somebody has made an external snapshot since, libvirt has repeated them in the overlay: they go there too. On
    the layer below, which is read-only now, QEMU lets no persistent one go; its name is in no manifest, so it is no
    base, and it goes once the layer is committed. Raises QmpError, when all have been tried, for any other refusal.
    """
    nodes = block_nodes(monitor)
    wanted = {one.bitmap for one in bitmaps}
    found = [
        NodeBitmap(node_name, name)
        for node_name in sorted(nodes.node_names())
        for name in sorted(wanted & nodes.bitmaps(node_name).keys())
    ]
    refusal: QmpError | None = None
    for one, err in _remove_each(monitor, found):
        if nodes.is_read_only(one.node_name):
            log.debug("bitmap %s stays below an overlay: %s", one.bitmap, err)
        else:
            refusal = err
    if refusal is not None:
        raise refusal


def _remove_each(monitor: Monitor, bitmaps: Sequence[NodeBitmap]) -> list[tuple[NodeBitmap, QmpError]]:
    """Remove all that QEMU lets go, and return the others: at once, for commands take time, or else one by one."""
    if len(bitmaps) > 1:
        together = [BlockDirtyBitmapRemove(one.node_name, one.bitmap).document() for one in bitmaps]
        try:
            monitor.execute("transaction", {"actions": together})
        except QmpError as err:
            log.debug("%s", err)
        else:
            return []
    refused = []
    for one in bitmaps:
        try:
            monitor.execute("block-dirty-bitmap-remove", {"node": one.node_name, "name": one.bitmap})
        except QmpError as err:
            refused.append((one, err))
    return refused


def remove_end_marks(monitor: Monitor, marks: Collection[NodeBitmap]) -> None:
    """Remove end marks that were just added, where they are there: others of that name may be on other layers."""
    nodes = block_nodes(monitor)
    for one in marks:
        if one.bitmap in nodes.bitmaps(one.node_name) and not nodes.is_read_only(one.node_name):
            monitor.execute("block-dirty-bitmap-remove", {"node": one.node_name, "name": one.bitmap})


def remove_leftovers(monitor: Monitor, naming: Naming) -> list[str]:
    """Remove the jobs, nodes and descriptors of this repository that a dead run left; return their names."""
    prefix = naming.prefix
    job_ids = [job_id for job_id in jobs.query(monitor) if job_id.startswith(prefix)]
    if job_ids:
        jobs.cancel(monitor, job_ids)
    return [*job_ids, *targets.close_all_in_qemu(monitor, naming)]


def remove_uncommitted(
    monitor: Monitor, disks: Collection[DiskNode], committed: Collection[str], naming: Naming
) -> list[str]:
    """Remove the bitmaps of backups that were never committed, and end marks that are of no use; return their names.

    ``committed`` has the ids of all backups that the repository has, also of those that cannot be read
    just now: their bitmaps stay.
    """

    def is_committed(_dev: str, ours: BitmapName | EndMark, bitmap: Bitmap) -> bool:
        if isinstance(ours, EndMark):
            return not bitmap.inconsistent
        return not ours.working and ours.checkpoint in committed

    return _remove(monitor, disks, naming, is_committed)


def remove_superseded(monitor: Monitor, disks: Collection[DiskNode], history: History, naming: Naming) -> list[str]:
    """Remove the bitmaps that no later backup starts from, and the end marks of other sizes; return their names.

    Those that drove the copies are among them. Layers below the active one are read-only to QEMU, their persistent
    bitmaps cannot be removed: they go once the layers are committed.
    """

    def is_base(dev: str, ours: BitmapName | EndMark, _bitmap: Bitmap) -> bool:
        return ours in kept[dev]

    kept: dict[str, frozenset[BitmapName | EndMark]] = {
        node.disk.dev: history.base_bitmaps(node.disk.dev) | history.end_marks(node.disk.dev) for node in disks
    }
    return _remove(monitor, disks, naming, is_base)


def _remove(
    monitor: Monitor,
    disks: Collection[DiskNode],
    naming: Naming,
    keep: Callable[[str, BitmapName | EndMark, Bitmap], bool],
) -> list[str]:
    """Remove this repository's bitmaps but those to keep. One that QEMU will not remove stays, and costs little.

    On layers below the active one only those that drive a copy: they are not persistent, so QEMU lets them go.
    """
    wanted: list[NodeBitmap] = []
    marks: list[NodeBitmap] = []
    for node in disks:
        for layer in node.layers:
            for name in sorted(layer.bitmaps):
                ours = names.parse_bitmap(name) or names.parse_end_mark(name)
                if ours is None or ours.repository_id != naming.repository_id:
                    continue
                if layer is not node.top and not (isinstance(ours, BitmapName) and ours.working):
                    continue
                if not keep(node.disk.dev, ours, layer.bitmaps[name]):
                    (marks if isinstance(ours, EndMark) else wanted).append(NodeBitmap(layer.node_name, name))
    # A base is never there without the end mark that it had.
    wanted += marks
    refused = dict(_remove_each(monitor, wanted))
    for one, err in refused.items():
        log.warning("Node %s: bitmap %s stays: %s", one.node_name, one.bitmap, err.description)
    return [one.bitmap for one in wanted if one not in refused]
