"""Set the last bit of a bitmap in QEMU, which nothing but a write does: what end marks are merged from.

No disk is written to. A node without storage (null-co) that is as large as the disk has a bitmap; a second one
stands for its last granule only (raw with ``offset``), and a backup job copies zeros onto that. (A mirror job writes
none to where there are zeros already, from QEMU 11.1 on at the latest. QEMU warns on stderr that the node does not
tell its cluster size, which is of no matter here.) It is the same in a running
QEMU and in a storage daemon, and takes some milliseconds. vbackup.engine.endmark says what it is for.
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
    """Make nodes of these sizes in bytes, by name, each with a bitmap whose last granule alone is set.

    The bitmap has the name naming.scratch_job; ``undo`` gets the end of job and nodes. Raises QmpError, and
    UnsuitableError where QEMU cannot do it.
    """
    if not sizes:
        return
    job_id = naming.scratch_job
    nodes = [naming.scratch_window, naming.scratch_source, *sizes]
    undo.push("close the scratch nodes in QEMU", lambda: targets.close_in_qemu(monitor, nodes))
    undo.push("end the job on a scratch node", lambda: jobs.cancel(monitor, [job_id]))
    for node_name, size_bytes in sizes.items():
        _make(monitor, node_name, size_bytes, naming=naming, stop=stop)


def _make(monitor: Monitor, node_name: str, size_bytes: int, *, naming: Naming, stop: Stop) -> None:
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
    ended = jobs.follow(monitor, [job_id], together=False, reporter=Silent(), stop=stop)[job_id]
    if ended.error is not None:
        raise UnsuitableError(f"QEMU cannot make the end mark of a disk: its job failed: {ended.error}.")
    jobs.cancel(monitor, [job_id])
    for name in (window, source):
        monitor.execute("blockdev-del", {"node-name": name})


def _null(node_name: str, size_bytes: int) -> dict[str, Any]:
    return {"driver": "null-co", "node-name": node_name, "size": size_bytes, "read-zeroes": True}
