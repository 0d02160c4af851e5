"""Remove vbackup's bitmaps, jobs and nodes from QEMU when they are superseded or were left behind.

vbackup's objects are recognised by their names (vbackup.names). The caller holds the domain's lock in the repository,
so everything that belongs to no committed backup is from a run that is dead, or from a copy of the repository, which
has the same id: its checkpoints have other tokens, and vbackup.operations.recovery refuses its jobs and nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from vbackup import names
from vbackup.errors import QmpError
from vbackup.images import targets
from vbackup.model import Bitmap, DiskNode, NodeBitmap
from vbackup.names import BitmapName, EndMark, Naming
from vbackup.qapi.actions import BlockDirtyBitmapRemove
from vbackup.qemu import jobs
from vbackup.qemu.block_graph import BlockNodes
from vbackup.qemu.monitor import Monitor, block_nodes
from vbackup.repository.history import History

log = logging.getLogger(__name__)


def remove_bitmaps(monitor: Monitor, bitmaps: Collection[NodeBitmap]) -> None:
    """Remove those of the bitmaps that exist.

    If an external snapshot was made since, libvirt has created bitmaps of the same names in the overlay: these are
    removed too. QEMU refuses to remove persistent bitmaps from the layer below, which is read-only now; no manifest
    names them, so they are not a base, and they are removed once the layer is committed. Raises QmpError for any other
    refusal, after trying all.
    """
    nodes = block_nodes(monitor)
    wanted = {bitmap.bitmap for bitmap in bitmaps}
    # Sorted for the same commands at every run only: any order removes them all.
    present = [
        NodeBitmap(node_name, name)
        for node_name in sorted(nodes.node_names())
        for name in sorted(wanted & nodes.bitmaps(node_name).keys())
    ]
    # One that may be there: QEMU removes bitmaps also from a node that it cannot describe.
    present += [bitmap for bitmap in bitmaps if _may_have(nodes, bitmap)]
    refusal: QmpError | None = None
    for bitmap, err in _remove_each(monitor, present):
        if err.description.is_no_bitmap:
            continue
        if nodes.is_read_only(bitmap.node_name):
            log.debug("bitmap %s stays below an overlay: %s", bitmap.bitmap, err)
        else:
            refusal = err
    if refusal is not None:
        raise refusal


def _may_have(nodes: BlockNodes, bitmap: NodeBitmap) -> bool:
    """Return True if QEMU has the node but does not describe it, as when its image was found corrupt."""
    return bitmap.node_name in nodes.node_names() and not nodes.is_described(bitmap.node_name)


def _remove_each(monitor: Monitor, bitmaps: Sequence[NodeBitmap]) -> list[tuple[NodeBitmap, QmpError]]:
    """Remove the bitmaps in one transaction, which saves time, or else one by one; return what QEMU refused."""
    if len(bitmaps) > 1:
        together = [BlockDirtyBitmapRemove(bitmap.node_name, bitmap.bitmap).document() for bitmap in bitmaps]
        try:
            monitor.execute("transaction", {"actions": together})
        except QmpError as err:
            log.debug("%s", err)
        else:
            return []
    refused = []
    for bitmap in bitmaps:
        try:
            monitor.execute("block-dirty-bitmap-remove", {"node": bitmap.node_name, "name": bitmap.bitmap})
        except QmpError as err:
            refused.append((bitmap, err))
    return refused


def remove_end_marks(monitor: Monitor, marks: Collection[NodeBitmap]) -> None:
    """Remove those of the new end marks that exist; marks of the same name on other layers stay."""
    nodes = block_nodes(monitor)
    for mark in marks:
        if mark.bitmap in nodes.bitmaps(mark.node_name) and not nodes.is_read_only(mark.node_name):
            monitor.execute("block-dirty-bitmap-remove", {"node": mark.node_name, "name": mark.bitmap})
        elif _may_have(nodes, mark):
            for _, err in _remove_each(monitor, [mark]):
                log.debug("%s", err)


def remove_leftovers(monitor: Monitor, naming: Naming) -> list[str]:
    """Remove the jobs, then the nodes and descriptors, of this repository that a dead run left; return their names.

    The bitmaps of a dead audit too: no journal tells of it.
    """
    prefix = naming.prefix
    job_ids = [job_id for job_id in jobs.query(monitor) if job_id.startswith(prefix)]
    if job_ids:
        jobs.cancel(monitor, job_ids)
    nodes = block_nodes(monitor)
    closed = targets.close_all_in_qemu(monitor, naming, known=nodes)
    return [*job_ids, *closed, *_remove_of_audits(monitor, block_nodes(monitor) if closed else nodes, naming)]


def _remove_of_audits(monitor: Monitor, nodes: BlockNodes, naming: Naming) -> list[str]:
    found = [
        NodeBitmap(node_name, name)
        for node_name in sorted(nodes.node_names())
        for name in sorted(nodes.bitmaps(node_name))
        if (parsed := names.parse_bitmap(name)) is not None
        and parsed.repository_id == naming.repository_id
        and parsed.is_of_audit
    ]
    refused = {bitmap for bitmap, _ in _remove_each(monitor, found)}
    return [bitmap.bitmap for bitmap in found if bitmap not in refused]


#: Where a bitmap comes from that is of this repository and of no backup of the domain, as messages say it.
UNCOMMITTED = (
    "left by an interrupted backup, by a QEMU that was killed, or by another domain of this repository that has had the"
    " image"
)


def remove_uncommitted(
    monitor: Monitor,
    disks: Collection[DiskNode],
    committed: Collection[str],
    naming: Naming,
    *,
    sizes: Mapping[str, Collection[int]] | None = None,
) -> list[str]:
    """Remove the bitmaps of backups that were never committed, and inconsistent end marks; return their names.

    ``committed`` has the ids of all backups in the repository, including those that cannot be read at the moment: their
    bitmaps stay. ``sizes``: those that each disk had at any of them, by dev; the end marks of others go, too.
    """

    def is_committed(dev: str, parsed: BitmapName | EndMark, bitmap: Bitmap) -> bool:
        if isinstance(parsed, EndMark):
            return not bitmap.inconsistent and (sizes is None or parsed.size_bytes in sizes.get(dev, ()))
        return not parsed.working and parsed.checkpoint in committed

    return _remove(monitor, disks, naming=naming, keep=is_committed)


def remove_all(monitor: Monitor, disks: Collection[DiskNode], naming: Naming) -> list[str]:
    """Remove all bitmaps that have this id, as far as QEMU lets go of them; return their names."""
    return _remove(monitor, disks, naming=naming, keep=lambda _dev, _parsed, _bitmap: False)


def remove_superseded(
    monitor: Monitor, disks: Collection[DiskNode], histories: Sequence[History], naming: Naming
) -> list[str]:
    """Remove the bitmaps that no later backup can start from, and the end marks of other sizes; return their names.

    What is a base by any of the histories stays.

    The working bitmaps are among them. QEMU has the layers below the active one open read-only, so persistent bitmaps
    there cannot be removed until the layers are committed.
    """

    def is_base(dev: str, parsed: BitmapName | EndMark, _bitmap: Bitmap) -> bool:
        return parsed in kept[dev]

    kept: dict[str, frozenset[BitmapName | EndMark]] = {
        node.disk.dev: frozenset(
            name
            for history in histories
            for name in history.base_bitmaps(node.disk.dev) | history.end_marks(node.disk.dev)
        )
        for node in disks
    }
    return _remove(monitor, disks, naming=naming, keep=is_base)


def of_other_places(disks: Collection[DiskNode], naming: Naming) -> dict[str, BitmapName]:
    """Return the checkpoints' bitmaps that a copy of the repository made, or this one before it was moved, by name."""
    return {
        name: parsed
        for node in disks
        for layer in node.layers
        for name in layer.bitmaps
        if (parsed := names.parse_bitmap(name)) is not None and parsed.is_of_other_place(naming)
    }


def _remove(
    monitor: Monitor,
    disks: Collection[DiskNode],
    *,
    naming: Naming,
    keep: Callable[[str, BitmapName | EndMark, Bitmap], bool],
) -> list[str]:
    """Remove the repository's bitmaps except those to keep. One that QEMU refuses to remove stays, and costs little.

    On layers that are open read-only, as those below the active one, only working bitmaps are removed: they are not
    persistent, so QEMU allows it. The checkpoints of a copy of the repository stay, and with them the end marks, which
    it shares: a base of the copy would be trusted without its mark.
    """
    removable: list[NodeBitmap] = []
    marks: list[NodeBitmap] = []
    for node in disks:
        has_others = bool(of_other_places([node], naming))
        for layer in node.layers:
            for name in sorted(layer.bitmaps):
                parsed = names.parse_bitmap(name) or names.parse_end_mark(name)
                if parsed is None or parsed.repository_id != naming.repository_id:
                    continue
                if (layer is not node.top or layer.read_only) and not (
                    isinstance(parsed, BitmapName) and parsed.working
                ):
                    continue
                if isinstance(parsed, BitmapName) and parsed.is_of_other_place(naming):
                    continue
                if isinstance(parsed, EndMark) and has_others and not layer.bitmaps[name].inconsistent:
                    continue
                if not keep(node.disk.dev, parsed, layer.bitmaps[name]):
                    (marks if isinstance(parsed, EndMark) else removable).append(NodeBitmap(layer.node_name, name))
    # The end marks last: a base must never be without the end mark that it had.
    removable += marks
    refused = dict(_remove_each(monitor, removable))
    for bitmap, err in refused.items():
        log.warning("Node %s: bitmap %s could not be removed: %s", bitmap.node_name, bitmap.bitmap, err.description)
    return [bitmap.bitmap for bitmap in removable if bitmap not in refused]
