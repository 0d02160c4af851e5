"""Block jobs that others run on the disks of a backup. vbackup.qemu.jobs follows our own.

A commit, a mirror, a stream, or libvirt's own backup: QEMU would refuse the transaction, or the disk would be
another one when the job ends. query-jobs tells which jobs there are, x-debug-query-block-graph which nodes
they hold (on QEMU 4.0 and later; where it is missing, the names that libvirt gives tell).
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
    """Raise DiskBusyError for the first of the disks that a job of somebody else works on.

    vbackup's own jobs are in nobody's way: those of this repository belong to the holder of the domain's lock, and
    QEMU makes any number of backups of a disk at once.
    """
    foreign = [
        one
        for one in jobs.query(monitor).values()
        if not names.is_ours(one.id) and one.status not in (JobStatus.CONCLUDED, JobStatus.NULL)
    ]
    if not foreign:
        return
    busy = _by_graph(monitor, disks, foreign)
    for disk in disks:
        for one in foreign:
            if one.id in busy.get(disk.dev, ()):
                raise DiskBusyError(disk.dev, one.type, one.id, by_libvirt=_is_libvirts_backup(one))


def _by_graph(monitor: Monitor, disks: Sequence[Disk], foreign: Sequence[Job]) -> Mapping[str, Collection[str]]:
    """The ids of the jobs on each disk, by dev."""
    try:
        reply = monitor.execute("x-debug-query-block-graph")
    except QmpError as err:
        log.debug("%s", err)
        return _by_name(foreign)
    held = debug_graph.nodes_of_jobs(reply)
    chains = block_chains(monitor)
    return {
        disk.dev: [one.id for one in foreign if held.get(one.id, frozenset()) & set(chains.get(disk.alias, ()))]
        for disk in disks
    }


def _by_name(foreign: Sequence[Job]) -> Mapping[str, Collection[str]]:
    busy = defaultdict(list)
    for one in foreign:
        match = _LIBVIRT_JOB.fullmatch(one.id)
        if match is not None:
            busy[match["dev"]].append(one.id)
    return busy


def _is_libvirts_backup(one: Job) -> bool:
    match = _LIBVIRT_JOB.fullmatch(one.id)
    return one.type == "backup" and match is not None and match["kind"] == "backup"
