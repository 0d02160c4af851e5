"""Ask QEMU what the layers of a disk have allocated: a bitmap on each layer (vbackup.engine.allocation says why).

A backup job with sync=top looks at what its layer has allocated, and with bitmap-mode=always it leaves in its bitmap
what it could not copy (docs/interop/bitmaps.rst). Here it can copy nothing, because its target refuses every write. So
it ends with the first piece it reads, and the bitmap has all that the layer has allocated, and what was written to it
since the job began. 40 TiB take a second; QEMU goes through the tables of an image, not through its data. (QEMU has no
command that does this: block-dirty-bitmap-populate was never merged.)

The bitmap of a layer that is smaller than the disk cannot be merged with one of the disk. It is merged into that of an
empty image of the same size, which then grows, and its bitmap with it. (A job from one node without storage to another
would do too, but it never waits for anything, and the guest stands still meanwhile.)

QEMU warns on stderr that the target has no cluster size, which does no harm here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vbackup.engine import leftovers
from vbackup.engine.allocation import ALL, LayerAllocation
from vbackup.engine.plan import BackupPlan, DiskPlan
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import JobError, QemuText, QmpError
from vbackup.files import storage_errors
from vbackup.images import raw_data, targets
from vbackup.images.targets import Target
from vbackup.model import GRANULARITY_BYTES, ImageOptions, NodeBitmap
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
from vbackup.qemu import jobs, qcow2_bitmap, qemu_img
from vbackup.report import Silent
from vbackup.repository.repository import Stage
from vbackup.undo import Undo


def ask(plan: BackupPlan, stage: Stage, domain: LockedDomain, *, undo: Undo) -> BackupPlan:
    """Add the bitmaps that the plan's fulls are copied by. Return the plan with them; without, if QEMU refuses.

    ``undo`` gets steps that end the jobs and remove nodes and bitmaps. Raises JobError if somebody ends such a job,
    StorageError or NoSpaceError if the stage has no room for a bitmap.
    """
    asked = [disk for disk in plan.disks if disk.allocation.layers]
    if not asked:
        return plan
    undo.push("remove the bitmaps of what is allocated", lambda: _remove(domain, asked))
    disks = list(plan.disks)
    for number, disk in enumerate(plan.disks):
        try:
            sources = _sources(disk, stage, domain, undo=undo) if disk in asked else ()
            disks[number] = replace(disk, allocation=replace(disk.allocation, sources=sources))
        except QmpError as err:
            domain.reporter.step(f"Disk {disk.dev}: all of it is read, because what it contains is not known ({err}).")
            _remove(domain, [disk])
            disks[number] = replace(disk, allocation=ALL)
    return replace(plan, disks=tuple(disks))


def _remove(domain: LockedDomain, disks: Sequence[DiskPlan]) -> None:
    """End the jobs, and remove the nodes and the bitmaps on the disks."""
    monitor, naming = domain.monitor, domain.naming
    plans = [disk.allocation for disk in disks]
    jobs.cancel(monitor, [one.job_id for one in plans])
    nodes = [bitmap.node_name for one in plans for bitmap in (one.extended, one.file_data)]
    targets.close_in_qemu(monitor, [naming.allocation_sink, *nodes])
    leftovers.remove_bitmaps(monitor, [layer.bitmap for one in plans for layer in one.layers])


def _sources(disk: DiskPlan, stage: Stage, domain: LockedDomain, *, undo: Undo) -> tuple[NodeBitmap, ...]:
    """Set a bitmap for each layer of the disk, and return those that together cover it."""
    allocation, sources, smaller = disk.allocation, list[NodeBitmap](), list[LayerAllocation]()
    for layer in allocation.layers:
        if layer.raw_path is not None and _set_by_file(domain, disk, layer, stage, undo=undo):
            sources.append(allocation.file_data)
            if layer is not allocation.layers[0]:
                continue  # nobody writes to it
        else:
            _set(domain, disk, layer)
        if layer.size_bytes == allocation.size_bytes:
            sources.append(layer.bitmap)
        else:
            smaller.append(layer)
    if smaller:
        _extend(domain, disk, smaller, stage, undo=undo)
        sources.append(allocation.extended)
    return tuple(sources)


def _set_by_file(domain: LockedDomain, disk: DiskPlan, layer: LayerAllocation, stage: Stage, *, undo: Undo) -> bool:
    """Give QEMU a bitmap of where the layer's file has data; return False if it cannot be known for certain.

    The layer's own bitmap is added first, empty, and records what is written from then on.
    """
    handle, monitor, data = domain.source.handle, domain.monitor, disk.allocation.file_data
    assert layer.raw_path is not None
    if not handle.host.is_local:
        return False
    fd = raw_data.open_held(Path(layer.raw_path), size_bytes=layer.size_bytes, uuid=handle.uuid)
    if fd is None:
        return False
    path = stage.path / f".{disk.dev}.bitmap"
    try:
        # In a transaction, which waits for the requests in flight (bdrv_drain_all_begin in qmp_transaction).
        add = BlockDirtyBitmapAdd(layer.bitmap.node_name, layer.bitmap.bitmap, granularity=GRANULARITY_BYTES)
        monitor.execute("transaction", {"actions": [add.document()]})
        with storage_errors(f"write {path}"), path.open("xb") as file:
            found = raw_data.extents(fd, check=domain.stop.check)
            qcow2_bitmap.write(file, disk.allocation.size_bytes, name=data.bitmap, extents=found)
        targets.open_in_qemu(monitor, [Target(path, data.node_name)], undo=undo)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)  # QEMU has it open
    return True


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


def _extend(
    domain: LockedDomain, disk: DiskPlan, smaller: Sequence[LayerAllocation], stage: Stage, *, undo: Undo
) -> None:
    """Bring what the smaller layers have to a bitmap as large as the disk: that of an empty image, which grows."""
    monitor, allocation = domain.monitor, disk.allocation
    node, name = allocation.extended.node_name, allocation.extended.bitmap
    sizes = sorted({layer.size_bytes for layer in smaller})
    path = stage.path / f".{disk.dev}.bitmap"
    try:
        with storage_errors(f"write {path}"):
            path.touch(mode=0o600)
        qemu_img.create(path, sizes[0], backing_rpath=None, options=ImageOptions())
        targets.open_in_qemu(monitor, [Target(path, node)], undo=undo)
    finally:
        path.unlink(missing_ok=True)  # QEMU has it open
    monitor.execute("block-dirty-bitmap-add", {"node": node, "name": name, "granularity": GRANULARITY_BYTES})
    for size_bytes, next_bytes in zip(sizes, (*sizes[1:], allocation.size_bytes)):
        sources = [layer.bitmap for layer in smaller if layer.size_bytes == size_bytes]
        merged = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in sources)
        monitor.execute("transaction", {"actions": [BlockDirtyBitmapMerge(node, name, merged).document()]})
        monitor.execute("block_resize", {"node-name": node, "size": next_bytes})


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
