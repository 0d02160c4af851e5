"""Ask QEMU what the layers of a disk have allocated: a bitmap on each layer (vbackup.engine.allocation says why).

A backup job with sync=top looks at what its layer has allocated, and with bitmap-mode=always it leaves in its bitmap
what it did not copy (docs/interop/bitmaps.rst), and what was written to the layer since it began. 40 TiB take a second;
QEMU goes through the tables of an image, not through its data. (QEMU has no command that does this:
block-dirty-bitmap-populate was never merged.) There are two targets:

- For a layer that nobody writes to, one that refuses every write: the job ends with the first piece it reads.
- For the active layer of a running domain that would fail writes of the guest, because the job first copies what the
  guest is about to overwrite (measured: 18 of 4000 writes). There the target takes everything and stores nothing, and a
  bitmap on the target has what was "copied". The job is so slow that it copies one piece after it has looked at
  everything, and is cancelled then. If it is cancelled before, what it has not looked at counts as allocated.

The bitmap of a layer that is smaller than the disk cannot be merged with one of the disk. It is merged into that of an
empty image of the same size, which then grows, and its bitmap with it. (A job from one node without storage to another
would do too, but it never waits for anything, and the guest stands still meanwhile.)

QEMU warns on stderr that the target has no cluster size, which does no harm here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vbackup.engine import leftovers
from vbackup.engine.allocation import ALL, LayerAllocation
from vbackup.engine.disk_plan import DiskPlan
from vbackup.engine.plan import BackupPlan
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import JobError, QmpError
from vbackup.files import storage_errors
from vbackup.images import raw_data, targets
from vbackup.images.targets import Target
from vbackup.model import GRANULARITY_BYTES, ImageOptions, NodeBitmap
from vbackup.qapi.actions import (
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

#: A job has looked at everything if its total has been the same for this time, in seconds: the longer one if more is
#: left than the layer's file can have. MARGIN_BYTES are zeros without data, which take no storage.
STEADY_S, STEADY_LONG_S = 0.1, 2.0
MARGIN_BYTES = 1024**3


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
    monitor, data = domain.monitor, disk.allocation.file_data
    assert layer.raw_path is not None
    open_files = domain.source.open_files() or ()
    fd = raw_data.open_held(Path(layer.raw_path), size_bytes=layer.size_bytes, open_files=open_files)
    if fd is None:
        return False
    try:
        # In a transaction, which waits for the requests in flight (bdrv_drain_all_begin in qmp_transaction).
        add = BlockDirtyBitmapAdd(layer.bitmap.node_name, layer.bitmap.bitmap, granularity=GRANULARITY_BYTES)
        monitor.execute("transaction", {"actions": [add.document()]})
        path = stage.scratch(f"{disk.dev}.data")
        with storage_errors(f"write {path}"), path.open("wb") as file:
            found = raw_data.extents(fd, check=domain.stop.check)
            qcow2_bitmap.write(file, disk.allocation.size_bytes, name=data.bitmap, extents=found)
        targets.open_in_qemu(monitor, [Target(path, data.node_name)], undo=undo)
    finally:
        os.close(fd)
    return True


def _set(domain: LockedDomain, disk: DiskPlan, layer: LayerAllocation) -> None:
    """Add the layer's bitmap and set it. The sink is open only meanwhile, as it has to have the size of the layer."""
    if layer is disk.allocation.layers[0] and domain.source.is_running:
        _set_while_the_guest_writes(domain, disk, layer)
    else:
        _set_undisturbed(domain, disk, layer)
    domain.monitor.execute("blockdev-del", {"node-name": domain.naming.allocation_sink})


def _set_undisturbed(domain: LockedDomain, disk: DiskPlan, layer: LayerAllocation) -> None:
    sink, job_id = domain.naming.allocation_sink, disk.allocation.job_id
    domain.monitor.execute("blockdev-add", _refusing(sink, layer.size_bytes))
    domain.monitor.execute("transaction", {"actions": _question(job_id, layer, sink)})
    error = jobs.follow(domain.monitor, [job_id], together=False, reporter=Silent(), stop=domain.stop)[job_id].error
    jobs.cancel(domain.monitor, [job_id])
    # Without an error there is nothing to write: the layer has allocated nothing.
    if error is not None and not error.is_io_error:
        raise JobError(disk.dev, f"{error} while asking what it contains")


def _set_while_the_guest_writes(domain: LockedDomain, disk: DiskPlan, layer: LayerAllocation) -> None:
    monitor, sink, job_id = domain.monitor, domain.naming.allocation_sink, disk.allocation.job_id
    node, name = layer.bitmap.node_name, layer.bitmap.bitmap
    monitor.execute("blockdev-add", {**_null(layer.size_bytes), "node-name": sink})
    monitor.execute("block-dirty-bitmap-add", {"node": sink, "name": name, "granularity": GRANULARITY_BYTES})
    monitor.execute("transaction", {"actions": _question(job_id, layer, sink, speed=1)})
    # However the job ends, its bitmap has at least what is allocated.
    jobs.until(monitor, job_id, _HasLooked(layer.allocated_bytes), stop=domain.stop)
    jobs.cancel(monitor, [job_id])
    merge = BlockDirtyBitmapMerge(node, name, (BlockDirtyBitmap(sink, name),))
    monitor.execute("transaction", {"actions": [merge.document()]})


class _HasLooked:
    """Whether a job seems to have looked at everything. The total shrinks as it finds what is not allocated.

    Progress alone is no sign: what the guest made it copy counts too. A mistake costs time and space, and no data. A
    job that has copied nothing for long hangs, which its speed hides from vbackup.qemu.jobs.
    """

    def __init__(self, allocated_bytes: int) -> None:
        self._expected_bytes = 2 * allocated_bytes + MARGIN_BYTES
        self._total_bytes = -1
        self._since = 0.0

    def __call__(self, job: jobs.Job) -> bool:
        now = time.monotonic()
        if job.total_bytes != self._total_bytes:
            self._total_bytes, self._since = job.total_bytes, now
            return False
        steady_s = STEADY_S if job.total_bytes <= self._expected_bytes else STEADY_LONG_S
        return now - self._since >= (steady_s if job.done_bytes > 0 else jobs.STALL_S)


def _extend(
    domain: LockedDomain, disk: DiskPlan, smaller: Sequence[LayerAllocation], stage: Stage, *, undo: Undo
) -> None:
    """Bring what the smaller layers have to a bitmap as large as the disk: that of an empty image, which grows."""
    monitor, allocation = domain.monitor, disk.allocation
    node, name = allocation.extended.node_name, allocation.extended.bitmap
    sizes = sorted({layer.size_bytes for layer in smaller})
    path = stage.scratch(f"{disk.dev}.extended")
    qemu_img.create(path, sizes[0], backing_rpath=None, options=ImageOptions())
    targets.open_in_qemu(monitor, [Target(path, node)], undo=undo)
    monitor.execute("block-dirty-bitmap-add", {"node": node, "name": name, "granularity": GRANULARITY_BYTES})
    for size_bytes, next_bytes in zip(sizes, (*sizes[1:], allocation.size_bytes)):
        sources = [layer.bitmap for layer in smaller if layer.size_bytes == size_bytes]
        merged = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in sources)
        monitor.execute("transaction", {"actions": [BlockDirtyBitmapMerge(node, name, merged).document()]})
        monitor.execute("block_resize", {"node-name": node, "size": next_bytes})


def _question(job_id: str, layer: LayerAllocation, sink: str, *, speed: int | None = None) -> list[dict[str, Any]]:
    """Return the actions that start the job; ``speed`` is its limit in bytes/s."""
    node, name = layer.bitmap.node_name, layer.bitmap.bitmap
    job = BlockdevBackup(
        job_id=job_id,
        device=node,
        target=sink,
        sync=MirrorSyncMode.TOP,
        bitmap=name,
        bitmap_mode=BitmapSyncMode.ALWAYS,
        speed=speed,
        auto_dismiss=False,
        x_perf=BackupPerf(max_workers=1, max_chunk=GRANULARITY_BYTES),
    )
    return [BlockDirtyBitmapAdd(node, name, granularity=GRANULARITY_BYTES).document(), job.document()]


def _null(size_bytes: int) -> dict[str, Any]:
    return {"driver": "null-co", "size": size_bytes, "read-zeroes": True}


def _refusing(node_name: str, size_bytes: int) -> dict[str, Any]:
    """Return a node without storage that fails every write (blkdebug; io types are those of QAPI BlkdebugIOType)."""
    refusals = [{"event": "none", "iotype": iotype} for iotype in ("write", "write-zeroes")]
    return {"driver": "blkdebug", "node-name": node_name, "image": _null(size_bytes), "inject-error": refusals}
