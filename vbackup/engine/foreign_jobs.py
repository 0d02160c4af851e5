"""What others do with the disks of a backup: their block jobs before it begins, a disk they detach meanwhile.

vbackup.qemu.jobs follows our own jobs.

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
from vbackup.errors import DiskBusyError, MalformedError, QmpError
from vbackup.fields import Fields
from vbackup.model import Disk
from vbackup.qemu import jobs
from vbackup.qemu.jobs import Job, JobStatus
from vbackup.qemu.monitor import Monitor, block_chains, block_nodes

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
    held = nodes_of_jobs(reply)
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


def close_detached(monitor: Monitor, nodes: Mapping[str, str]) -> list[str]:
    """Close the nodes of disks that were detached while our jobs read them; returns their dev.

    ``nodes`` has the node, by dev, of each disk's active layer when the jobs began, in this very QEMU.

    libvirt has told QEMU to close them when it detached the disk, which QEMU refused because of the job, and has
    forgotten them since. Left alone they hold the image's lock, so that it cannot be attached again, and the
    bitmaps are not stored. QEMU refuses to close a node that anything uses.
    """
    in_use = {name for chain in block_chains(monitor).values() for name in chain}
    detached = {dev: name for dev, name in nodes.items() if name not in in_use}
    known = block_nodes(monitor).node_names() if detached else frozenset()
    for name in detached.values():
        left = [name]
        while left:
            # Those below are asked for first: they are not there to be asked about afterwards.
            below = _children(monitor)
            one = left.pop(0)
            if not one.startswith("libvirt-") or one not in known:
                continue
            try:
                monitor.execute("blockdev-del", {"node-name": one})
            except QmpError as err:
                log.debug("%s", err)
            else:
                left.extend(below.get(one, ()))
    return list(detached)


def _children(monitor: Monitor) -> Mapping[str, Collection[str]]:
    """The nodes that each node stands on; empty where QEMU does not tell."""
    try:
        return _held(monitor.execute("x-debug-query-block-graph"), "block-driver")
    except QmpError as err:
        log.debug("%s", err)
        return {}


def nodes_of_jobs(reply: object) -> Mapping[str, frozenset[str]]:
    """The nodes that each job holds, by job id, from the reply to x-debug-query-block-graph (QAPI XDbgBlockGraph).

    Raises MalformedError where it is not what QAPI says it is.
    """
    return _held(reply, "block-job")


def _held(reply: object, kind: str) -> Mapping[str, frozenset[str]]:
    """The nodes that the things of that kind (QAPI XDbgBlockGraphNodeType) stand on, by their names."""
    graph = Fields(reply, "x-debug-query-block-graph", MalformedError)
    kinds: dict[int, tuple[str, str]] = {}
    for node in graph.objects("nodes"):
        kinds[node.integer("id")] = (node.text("type"), node.text("name"))
    held = defaultdict(set)
    for edge in graph.objects("edges"):
        (parent_kind, parent), (_, child) = (kinds.get(edge.integer(end), ("", "")) for end in ("parent", "child"))
        if parent_kind == kind:
            held[parent].add(child)
    return {name: frozenset(nodes) for name, nodes in held.items()}


def _is_libvirts_backup(one: Job) -> bool:
    match = _LIBVIRT_JOB.fullmatch(one.id)
    return one.type == "backup" and match is not None and match["kind"] == "backup"
