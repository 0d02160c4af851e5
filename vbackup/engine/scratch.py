"""Prepare bitmaps whose last bit is set, from which end marks (vbackup.engine.endmark) are merged.

Only a write sets a bit, but no disk is written to. The bitmap is on a node without storage (null-co) that is as large
as the disk. A second node (raw with ``offset``) maps only the last granule of the first, and a backup job copies zeros
to it. (A mirror job does not write zeros over zeros, from QEMU 11.1 on at the latest. QEMU warns on stderr that the
target has no cluster size, which does no harm here.) This works in a running QEMU and in a storage daemon, and takes a
few milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vbackup.errors import UnsuitableError
from vbackup.images import targets
from vbackup.model import GRANULARITY_BYTES
from vbackup.names import Naming
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor
from vbackup.report import Silent
from vbackup.stop import Stop
from vbackup.undo import Undo


def prepare(monitor: Monitor, sizes: Mapping[str, int], *, naming: Naming, undo: Undo, stop: Stop) -> None:
    """Add nodes with these sizes in bytes, by name, each with a bitmap in which only the last granule is set.

    The name of each bitmap is naming.scratch_job. ``undo`` gets steps that cancel the job and close the nodes. Raises
    QmpError, and UnsuitableError if the job fails.
    """
    if not sizes:
        return
    job_id = naming.scratch_job
    nodes = [naming.scratch_window, naming.scratch_source, *sizes]
    undo.push("close the scratch nodes in QEMU", lambda: targets.close_in_qemu(monitor, nodes))
    undo.push("end the job on a scratch node", lambda: jobs.cancel(monitor, [job_id]))
    for node_name, size_bytes in sizes.items():
        _make(monitor, node_name, size_bytes=size_bytes, naming=naming, stop=stop)


def _make(monitor: Monitor, node_name: str, *, size_bytes: int, naming: Naming, stop: Stop) -> None:
    job_id = naming.scratch_job
    source, window = naming.scratch_source, naming.scratch_window
    start_bytes = (size_bytes - 1) // GRANULARITY_BYTES * GRANULARITY_BYTES
    monitor.execute("blockdev-add", _null(node_name, size_bytes))
    bitmap = {"node": node_name, "name": job_id, "granularity": GRANULARITY_BYTES}
    monitor.execute("block-dirty-bitmap-add", bitmap)
    monitor.execute("blockdev-add", _null(source, size_bytes - start_bytes))
    part = {"driver": "raw", "node-name": window, "file": node_name}
    monitor.execute("blockdev-add", {**part, "offset": start_bytes, "size": size_bytes - start_bytes})
    copy = {"job-id": job_id, "device": source, "target": window, "sync": "full", "auto-dismiss": False}
    monitor.execute("blockdev-backup", copy)
    job = jobs.follow(monitor, [job_id], together=False, reporter=Silent(), stop=stop)[job_id]
    if job.error is not None:
        raise UnsuitableError(f"QEMU cannot make the end mark of a disk: its job failed: {job.error}.")
    jobs.cancel(monitor, [job_id])
    for name in (window, source):
        monitor.execute("blockdev-del", {"node-name": name})


def _null(node_name: str, size_bytes: int) -> dict[str, Any]:
    return {"driver": "null-co", "node-name": node_name, "size": size_bytes, "read-zeroes": True}
