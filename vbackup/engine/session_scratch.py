"""The overlays of a pull session, in the scratch directory: what the guest overwrites is saved there first.

An overlay is a qcow2 image whose backing file is the disk. That the disk is in its backing chain makes QEMU serialise
the copy with what clients read from the overlay (is_fleecing in QEMU's block/block-copy.c), and its own block status is
right, which that of a snapshot-access node is not on QEMU 7.2.

No error of the scratch directory may reach the guest, and none may become wrong data for a client. The overlay cannot
lose a write and go on: it would show the disk as it is now. So the *file* of the overlay is a quorum that takes every
write of which one member succeeds: an outer qcow2 image in the scratch directory, or a node that keeps nothing. To the
overlay a lost cluster is written; whoever reads it reaches the outer image, which has not allocated it and whose
backing file cannot be read, and then the node that keeps nothing, which cannot be read either: the client gets an
error (EACCES). Both images have clusters of 64 KiB, and QEMU writes whole ones, so none is half lost.

The overlay must never have to read tables again that were lost: its caches hold all of them, and are never cleaned.
That memory is used only as far as there are tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vbackup.engine import fleecing
from vbackup.engine.audit_scratch import RemoteScratch
from vbackup.engine.session_plan import SessionDiskPlan
from vbackup.errors import DiskError, FdsNotNeededError, FdsNotPassedError, QmpError, StorageError, UnsuitableError
from vbackup.files import nameless, storage_errors
from vbackup.images import targets
from vbackup.model import CLUSTER_BYTES, Disk, SecurityLabel
from vbackup.qemu import iothreads, qemu_img
from vbackup.qemu.monitor import Monitor, schema
from vbackup.undo import Undo

#: Bytes of a cluster's entry in the tables: of its address, and of its reference count.
_L2_ENTRY_BYTES, _REFCOUNT_BYTES = 8, 2
#: Least size of QEMU's cache of reference counts: four clusters (MIN_REFCOUNT_CACHE_SIZE in block/qcow2.h).
_MIN_CACHE_CLUSTERS = 4
#: Room in the overlay's file beside data and tables: header, first table, and what QEMU allocates at once.
_SPARE_BYTES = 16 * 1024 * 1024
#: What an overlay is made of.
_DRIVERS = frozenset(("quorum", "blkdebug", "null-co"))


def refuse_unable(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """Raise UnsuitableError if this QEMU cannot serve the disks without a danger for the guest.

    It may lack a driver that keeps errors of the scratch directory from the guest. And an export of a disk with an
    iothread works in that: since the fix of CVE-2024-7409 in 7.2.14 and 8.2.7, QEMU before 9.0 ends when a client of it
    disconnects (nbd_blockdev_client_closed in QEMU's blockdev-nbd.c: Assertion `qemu_in_main_thread() && nbd_server'
    failed; seen on 7.2.22). discard-source, which was added in 9.1, shows a QEMU that does not.
    """
    known = schema(monitor)
    if "discard-source" not in known.members("blockdev-backup"):
        for disk in disks:
            iothread = iothreads.iothread_of(monitor, disk.alias)
            if iothread is not None:
                raise DiskError(
                    disk.dev,
                    f"it has an iothread ({iothread}), and a QEMU before 9.1 can end, and the guest with it, when a"
                    " client of such a disk disconnects. 'vbackup backup' can back it up. For a session, leave it out"
                    f" with --exclude-disk {disk.dev}, shut the domain off, or remove the iothread.",
                )
    missing = sorted(_DRIVERS - known.block_drivers())
    if missing:
        raise UnsuitableError(
            f"This QEMU cannot serve a running domain: it lacks the block driver {missing[0]}, without which an error"
            " of the scratch directory could reach the guest. Shut the domain off, or use 'vbackup backup'."
        )


def open_overlays(
    monitor: Monitor,
    disks: Sequence[SessionDiskPlan],
    directory: Path,
    *,
    undo: Undo,
    security_labels: Sequence[SecurityLabel] = (),
    there: RemoteScratch | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Make an overlay for each disk and open it in QEMU; ``undo`` gets the end of the nodes.

    The files have no names: they are gone when QEMU closes them. Raises UnsuitableError if the connection carries no
    descriptors, StorageError, NoSpaceError.
    """
    nodes = [disk.exported for disk in disks]
    place = os.fspath(directory) if there is None else there.place
    undo.push("close the scratch images in QEMU", lambda: targets.close_in_qemu(monitor, nodes))
    for disk in disks:
        what = f"make a scratch image in {directory if there is None else there.here}"
        outer_bytes = file_bytes(disk.size_bytes)
        with storage_errors(what):
            here = directory if there is None else there.here
            fd, inner_fd = nameless(here), nameless(here)
        try:
            qemu_img.create_inside(inner_fd, fd, disk.size_bytes, outer_bytes, what=what)
            if there is None:
                filename = _pass(monitor, fd, disk.exported)
            else:
                filename = there.lend(monitor, fd, disk.exported, check=check)
            monitor.execute(
                "blockdev-add",
                overlay(
                    disk.exported,
                    backing=disk.node.top.node_name,
                    filename=filename,
                    size_bytes=disk.size_bytes,
                ),
            )
        except QmpError as err:
            if err.description.is_denied:
                if there is not None:
                    raise StorageError(there.denied(security_labels, str(err.description))) from err
                message = targets.denied(directory, security_labels, by_descriptor=True)
                raise StorageError(message) from err
            raise StorageError(
                f"QEMU cannot open an image in the scratch directory {place}: {err.description.rstrip('.')}."
            ) from err
        finally:
            os.close(fd)
            os.close(inner_fd)


def _pass(monitor: Monitor, fd: int, node_name: str) -> str:
    try:
        return targets.pass_fd(monitor, fd, node_name)
    except FdsNotNeededError:
        raise AssertionError("a domain without a guest has no overlay") from None
    except FdsNotPassedError as err:
        raise UnsuitableError(
            f"A session needs a connection that can carry file descriptors, and this one cannot ({err}) Run vbackup on"
            " the host of the domain."
        ) from err


def file_bytes(size_bytes: int) -> int:
    """Return how large the file of an overlay of this size can become."""
    per_cluster = CLUSTER_BYTES + _L2_ENTRY_BYTES + _REFCOUNT_BYTES
    return _clusters(_clusters(size_bytes) * per_cluster + _SPARE_BYTES) * CLUSTER_BYTES


def overlay(node_name: str, *, backing: str, filename: str, size_bytes: int) -> targets.BlockdevOptions:
    """Return the overlay of a node: ``filename`` is the outer image."""
    outer_bytes = file_bytes(size_bytes)
    nothing = fleecing.unreadable(outer_bytes)
    outer = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": filename},
        "backing": fleecing.unreadable(outer_bytes),
    }
    return {
        "driver": "qcow2",
        "node-name": node_name,
        "backing": backing,
        "l2-cache-size": _cache_bytes(size_bytes, _L2_ENTRY_BYTES),
        "refcount-cache-size": _cache_bytes(outer_bytes, _REFCOUNT_BYTES),
        "cache-clean-interval": 0,
        "file": {
            "driver": "quorum",
            "children": [outer, nothing],
            "vote-threshold": 1,
            "read-pattern": "fifo",
        },
    }


def _cache_bytes(size_bytes: int, entry_bytes: int) -> int:
    """Return the size of a cache that holds all entries of the clusters of an image, in whole clusters."""
    return (_clusters(_clusters(size_bytes) * entry_bytes) + _MIN_CACHE_CLUSTERS) * CLUSTER_BYTES


def _clusters(size_bytes: int) -> int:
    """Return the number of clusters that hold so much."""
    return (size_bytes + CLUSTER_BYTES - 1) // CLUSTER_BYTES
