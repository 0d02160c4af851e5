"""Ask QEMU what the layers of a disk have allocated: a bitmap on each layer (vbackup.engine.allocation says why).

A backup job with sync=top looks at what its layer has allocated, and with bitmap-mode=always it leaves in its bitmap
what it could not copy (docs/interop/bitmaps.rst). Here it can copy nothing, because its target refuses every write. So
it ends with the first piece it reads, and the bitmap has all that the layer has allocated, and what was written to it
since the job began. 40 TiB take a second; QEMU goes through the tables of an image, not through its data. (QEMU has no
command that does this: block-dirty-bitmap-populate was never merged.)

The bitmap of a layer that is smaller than the disk cannot be merged with one of the disk. It drives a job that copies
zeros from one node without storage to another, which is as large as the disk: that one's bitmap then has the same.

QEMU warns on stderr that the target has no cluster size, which does no harm here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vbackup.engine import leftovers
from vbackup.engine.allocation import ALL, LayerAllocation
from vbackup.engine.plan import BackupPlan, DiskPlan
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import JobError, QemuText, QmpError
from vbackup.images import targets
from vbackup.model import GRANULARITY_BYTES
from vbackup.qapi.actions import (
    Action,
    BackupPerf,
    BitmapSyncMode,
    BlockdevBackup,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    MirrorSyncMode,
)
from vbackup.qemu import jobs
from vbackup.report import Silent
from vbackup.undo import Undo


def ask(plan: BackupPlan, domain: LockedDomain, *, undo: Undo) -> BackupPlan:
    """Add the bitmaps that the plan's fulls are copied by. Return the plan, which copies all of a disk if QEMU refuses.

    ``undo`` gets steps that end the jobs and remove nodes and bitmaps. Raises JobError if somebody ends such a job.
    """
    asked = [disk for disk in plan.disks if disk.allocation.layers]
    if not asked:
        return plan
    undo.push("remove the bitmaps of what is allocated", lambda: _remove(domain, asked))
    disks = list(plan.disks)
    for number, disk in enumerate(plan.disks):
        try:
            for layer in disk.allocation.layers:
                _set(domain, disk, layer)
            if disk.allocation.smaller:
                _extend(domain, disk)
        except QmpError as err:
            domain.reporter.step(f"Disk {disk.dev}: all of it is read, because what it contains is not known ({err}).")
            _remove(domain, [disk])
            disks[number] = replace(disk, allocation=ALL)
    return replace(plan, disks=tuple(disks))


def _remove(domain: LockedDomain, disks: Sequence[DiskPlan]) -> None:
    """End the jobs, and remove the nodes and the bitmaps on the disks."""
    monitor, naming = domain.monitor, domain.naming
    jobs.cancel(monitor, [disk.allocation.job_id for disk in disks])
    extended = [disk.allocation.extended_node for disk in disks]
    ours = [naming.allocation_sink, naming.allocation_window, naming.allocation_source, *extended]
    targets.close_in_qemu(monitor, ours)
    leftovers.remove_bitmaps(monitor, [layer.bitmap for disk in disks for layer in disk.allocation.layers])


def _set(domain: LockedDomain, disk: DiskPlan, layer: LayerAllocation) -> None:
    """Add the layer's bitmap and set it. The sink is open only meanwhile, as it has to have the size of the layer."""
    sink, node, bitmap = domain.naming.allocation_sink, layer.bitmap.node_name, layer.bitmap.bitmap
    domain.monitor.execute("blockdev-add", _sink(sink, layer.size_bytes))
    job = BlockdevBackup(
        job_id=disk.allocation.job_id,
        device=node,
        target=sink,
        sync=MirrorSyncMode.TOP,
        bitmap=bitmap,
        bitmap_mode=BitmapSyncMode.ALWAYS,
        auto_dismiss=False,
        x_perf=BackupPerf(max_workers=1),
    )
    # Without an error there is nothing to write: the layer has allocated nothing.
    error = _run(domain, disk, [BlockDirtyBitmapAdd(node, bitmap, granularity=GRANULARITY_BYTES), job])
    if error is not None and not error.is_io_error:
        raise JobError(disk.dev, f"{error} while asking what it contains")
    domain.monitor.execute("blockdev-del", {"node-name": sink})


def _extend(domain: LockedDomain, disk: DiskPlan) -> None:
    """Bring what the smaller layers have to the bitmap of a node as large as the disk."""
    monitor, naming, allocation = domain.monitor, domain.naming, disk.allocation
    extended, name = allocation.extended.node_name, allocation.extended.bitmap
    source, window = naming.allocation_source, naming.allocation_window
    monitor.execute("blockdev-add", {**_null(allocation.layers[0].size_bytes), "node-name": extended})
    monitor.execute("block-dirty-bitmap-add", {"node": extended, "name": name, "granularity": GRANULARITY_BYTES})
    for size_bytes in sorted({layer.size_bytes for layer in allocation.smaller}):
        bitmaps = [layer.bitmap for layer in allocation.smaller if layer.size_bytes == size_bytes]
        monitor.execute("blockdev-add", {**_null(size_bytes), "node-name": source})
        part = {"driver": "raw", "node-name": window, "file": extended, "offset": 0, "size": size_bytes}
        monitor.execute("blockdev-add", part)
        job = BlockdevBackup(
            job_id=allocation.job_id,
            device=source,
            target=window,
            sync=MirrorSyncMode.BITMAP,
            bitmap=name,
            bitmap_mode=BitmapSyncMode.NEVER,
            auto_dismiss=False,
        )
        merged = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in bitmaps)
        add = BlockDirtyBitmapAdd(source, name, granularity=GRANULARITY_BYTES, disabled=True)
        error = _run(domain, disk, [add, BlockDirtyBitmapMerge(source, name, merged), job])
        if error is not None:
            raise JobError(disk.dev, f"{error} while asking what it contains")
        for node in (window, source):
            monitor.execute("blockdev-del", {"node-name": node})


def _run(domain: LockedDomain, disk: DiskPlan, actions: Sequence[Action]) -> QemuText | None:
    """Carry out the actions, wait for the job that they start, and return its error."""
    job_id = disk.allocation.job_id
    domain.monitor.execute("transaction", {"actions": [action.document() for action in actions]})
    job = jobs.follow(domain.monitor, [job_id], together=False, reporter=Silent(), stop=domain.stop)[job_id]
    jobs.cancel(domain.monitor, [job_id])
    return job.error


def _null(size_bytes: int) -> dict[str, Any]:
    return {"driver": "null-co", "size": size_bytes, "read-zeroes": True}


def _sink(node_name: str, size_bytes: int) -> dict[str, Any]:
    """Return a node without storage that fails every write (blkdebug; io types are those of QAPI BlkdebugIOType)."""
    refusals = [{"event": "none", "iotype": iotype} for iotype in ("write", "write-zeroes")]
    return {"driver": "blkdebug", "node-name": node_name, "image": _null(size_bytes), "inject-error": refusals}
