"""Block jobs that other programs run on the disks of a backup. vbackup.qemu.jobs follows vbackup's own jobs.

With a commit, a mirror, a stream or libvirt's own backup on a disk, QEMU would refuse the transaction, or the disk
would be a different one when that job ends. query-jobs lists the jobs, x-debug-query-block-graph the nodes that they
hold (on QEMU 4.0 and later; without it, the names that libvirt gives its jobs have to do).
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from vbackup import names
from vbackup.errors import DiskBusyError, QmpError
from vbackup.model import Disk
from vbackup.qemu import debug_graph, jobs
from vbackup.qemu.jobs import Job, JobStatus
from vbackup.qemu.monitor import Monitor, block_chains

log = logging.getLogger(__name__)

#: libvirt's qemuBlockJobDataNew and its callers: commit-vda-libvirt-1-format, pull-..., copy-..., backup-...
_LIBVIRT_JOB = re.compile(r"(?P<kind>[a-z]+)-(?P<dev>[^-]+)-.+")


def refuse_busy(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """Raise DiskBusyError for the first disk on which a job that is not vbackup's works.

    vbackup's own jobs do no harm: those of this repository belong to the holder of the domain's lock, and QEMU can run
    any number of backups of a disk at once.
    """
    foreign = [
        job
        for job in jobs.query(monitor).values()
        if not names.is_ours(job.id) and job.status not in (JobStatus.CONCLUDED, JobStatus.NULL)
    ]
    if not foreign:
        return
    busy = _by_graph(monitor, disks, foreign=foreign)
    for disk in disks:
        for job in foreign:
            if job.id in busy.get(disk.dev, ()):
                raise DiskBusyError(disk.dev, job.type, job.id, by_libvirt=_is_libvirts_backup(job))


def _by_graph(monitor: Monitor, disks: Sequence[Disk], *, foreign: Sequence[Job]) -> Mapping[str, Collection[str]]:
    """Return the ids of the jobs on each disk, by dev."""
    try:
        reply = monitor.execute("x-debug-query-block-graph")
    except QmpError as err:
        log.debug("%s", err)
        return _by_name(foreign)
    held = debug_graph.nodes_of_jobs(reply)
    chains = block_chains(monitor)
    return {
        disk.dev: [job.id for job in foreign if held.get(job.id, frozenset()) & set(chains.get(disk.alias, ()))]
        for disk in disks
    }


def _by_name(foreign: Sequence[Job]) -> Mapping[str, Collection[str]]:
    """Return the ids of libvirt's jobs on each disk, by dev: a job of anybody else cannot be assigned."""
    busy = defaultdict(list)
    for job in foreign:
        match = _LIBVIRT_JOB.fullmatch(job.id)
        if match is not None:
            busy[match["dev"]].append(job.id)
    return busy


def _is_libvirts_backup(job: Job) -> bool:
    match = _LIBVIRT_JOB.fullmatch(job.id)
    return job.type == "backup" and match is not None and match["kind"] == "backup"
