"""Keep a slow repository from slowing the guest: save the data that it is about to overwrite on a local disk first.

While a backup job reads a disk, the guest's first write to a range that has not been copied waits until the old data is
in the target, at the target's speed. With a fleecing area, that job (sync none) writes to an image there instead. A
view (QEMU's snapshot-access on the job's filter, since 7.0) shows the disk as it was at the moment of the backup, and
a second job copies from the view to the repository; no guest waits for it. The rest of the transaction is the same:
all disks are at one moment. QEMU's documentation calls this fleecing.

The image has no name in any directory, so it vanishes with QEMU's last descriptor for it, whatever happens. It grows by
what the guest overwrites during the backup, at most to the size of the disk. Rejected: copying everything to the
fleecing area first and then to the repository, which needs room for the whole backup and reads everything twice; and
an overlay with the disk as its backing file, which QEMU lets no job read while another one writes to it.

If QEMU's block status of the view cannot be trusted, the copy reads the whole disk, or everything that has changed; its
target then detects the zeros.

No error of the fleecing area may reach the guest, whatever its errno. QEMU 10.1 has an option (on-cbw-error).
Before, the area is a quorum that takes a write when one of its two members does: the image, or a node that keeps
nothing. What only the second one took can be read from neither, so that the copy fails if it needs that. Either way
QEMU says that permission is denied: EACCES is what on-cbw-error=break-snapshot makes of a read, and what is injected
here. Nothing has to be noticed in time, and no event can be missed. (A second member that fails every write with ENOSPC
would stop the guest instead, but only under libvirt's default error_policy.)

A disk whose iothread is in use has its nodes in another AioContext. QEMU before 9.0 aborts there as it opens the view:
bdrv_open probes its child with another BlockBackend and drains that without the lock of that AioContext, which
ends in "qemu_mutex_unlock_impl: Operation not permitted" while a request of the guest is in flight (block.c, blk_unref
in bdrv_open_inherit; 7.2, always with a guest that does I/O). Nothing opens the view in another way: blockdev-reopen
does not know snapshot-access, and a job cannot read an overlay of the disk while another one writes to it.

vbackup.engine.plan names jobs and nodes, vbackup.engine.finish ends them.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vbackup.engine.disk_plan import DiskPlan, FleecingPlan
from vbackup.engine.fleecing_area import Area
from vbackup.engine.plan import FleecingAbilities
from vbackup.errors import (
    DiskError,
    JobError,
    NoSpaceError,
    QemuText,
    QmpError,
    StorageError,
    UnsuitableError,
)
from vbackup.images import targets
from vbackup.model import Disk, SecurityLabel
from vbackup.qemu import iothreads, jobs
from vbackup.qemu.monitor import Monitor, schema
from vbackup.undo import Undo

#: Free space that is left in the fleecing area for whatever else writes there: what a fast guest writes between two
#: checks (vbackup.qemu.jobs.TICK_S), but only a share of a small area.
RESERVE_BYTES = 1024 * 1024 * 1024
RESERVE_SHARE = 4

#: What keeps errors of the fleecing area from the guest where QEMU cannot do it by itself.
_KEEPERS = frozenset(("quorum", "blkdebug", "null-co"))


def abilities(monitor: Monitor) -> FleecingAbilities:
    """Return what this QEMU can do for fleecing. Raises UnsuitableError if it lacks a driver that is needed."""
    known = schema(monitor)
    drivers = known.block_drivers()
    if "snapshot-access" not in drivers:
        raise UnsuitableError(
            "This QEMU cannot use a fleecing area: it lacks snapshot-access, which was added in QEMU 7.0."
        )
    # QEMU 7.2 reports the block status of a view from the disk as it is now: a range that the guest has zeroed since
    # would be copied as zeros (measured; right on 10.0 and 11.1). The schema does not show which it is, but
    # discard-source was added with the work on views in 9.1.
    members = known.members("blockdev-backup")
    can = FleecingAbilities(spares_guest="on-cbw-error" in members, tells_zeros="discard-source" in members)
    missing = sorted(_KEEPERS - drivers)
    if missing and not can.spares_guest:
        raise UnsuitableError(
            "This QEMU cannot use a fleecing area: it could not keep an error there from the guest, because it has"
            f" neither on-cbw-error, which was added in QEMU 10.1, nor the block driver {missing[0]}. Back up without"
            " --fleecing."
        )
    return can


def refuse_iothreads(monitor: Monitor, disks: Sequence[Disk], can: FleecingAbilities) -> None:
    """Raise DiskError for a disk with an iothread if this QEMU could abort, and the guest with it.

    Whether the iothread is in use does not count: that changes when the guest's driver starts.
    """
    if can.tells_zeros:
        return  # from QEMU 9.1 on; the lock that the abort is about is gone since 9.0
    for disk in disks:
        iothread = iothreads.iothread_of(monitor, disk.alias)
        if iothread is not None:
            raise DiskError(
                disk.dev,
                f"it has an iothread ({iothread}), and a QEMU before 9.1 can crash, and the guest with it, when such a"
                " disk is backed up through a fleecing area. Back it up without --fleecing: --max-latency also spares"
                " the guest.",
            )


def open_images(
    monitor: Monitor,
    disks: Sequence[DiskPlan],
    area: Area,
    *,
    undo: Undo,
    security_labels: Sequence[SecurityLabel] = (),
) -> None:
    """Create an image for each disk and open it in QEMU; ``undo`` gets the end of all nodes, views included.

    Raises UnsuitableError if the connection carries no descriptors, StorageError, NoSpaceError.
    """
    nodes = [name for disk in disks if disk.fleecing is not None for name in disk.fleecing.nodes]
    undo.push("close the fleecing area in QEMU", lambda: targets.close_in_qemu(monitor, nodes))
    for disk in disks:
        assert disk.fleecing is not None
        size_bytes = disk.node.top.virtual_size_bytes
        try:
            filename = area.make_image(monitor, disk.fleecing.node, size_bytes)
            monitor.execute("blockdev-add", _area(disk.fleecing, filename, size_bytes))
        except QmpError as err:
            raise StorageError(_refused(area, err.description, security_labels)) from err


def _area(fleecing: FleecingPlan, filename: str, size_bytes: int) -> targets.BlockdevOptions:
    """Return the node that the fleecing job writes to; no write to it fails."""
    image = targets.node(fleecing.node, filename)
    if fleecing.on_cbw_error is not None:
        return image
    del image["node-name"]
    # QEMU logs that the target does not report its cluster size: a quorum cannot. It is the default, 64 KiB.
    members = [{**image, "backing": unreadable(size_bytes)}, unreadable(size_bytes)]
    return {
        "driver": "quorum",
        "node-name": fleecing.node,
        "children": members,
        "vote-threshold": 1,
        "read-pattern": "fifo",
    }


def unreadable(size_bytes: int) -> targets.BlockdevOptions:
    """Return a node that takes every write, keeps nothing, and lets nothing be read.

    Nor does it say that anything reads as zeros, which would then be copied as zeros, unread.
    """
    nothing = {"driver": "null-co", "size": size_bytes, "read-zeroes": False}
    refusal = {"event": "none", "iotype": "read", "errno": errno.EACCES}
    return {"driver": "blkdebug", "image": nothing, "inject-error": [refusal]}


def _refused(area: Area, description: QemuText, labels: Sequence[SecurityLabel]) -> str:
    if description.is_denied and area.local_path is not None:
        return targets.denied(area.local_path, labels, by_descriptor=True)
    return f"QEMU cannot open an image in the fleecing area {area.place}: {description.rstrip('.')}."


def open_views(monitor: Monitor, disks: Sequence[DiskPlan]) -> None:
    """Open the nodes that show the disks as they were; the jobs whose filters they use have started.

    ``open_images`` has registered their end.
    """
    for disk in disks:
        assert disk.fleecing is not None
        monitor.execute("blockdev-add", {**_view(disk.fleecing), "node-name": disk.fleecing.view})


def _view(fleecing: FleecingPlan) -> targets.BlockdevOptions:
    view = {"driver": "snapshot-access", "file": fleecing.filter_node}
    if fleecing.tells_zeros:
        return view
    # On an error a backup job assumes data and reads it (block_copy_block_status in QEMU's block/block-copy.c).
    silence = {"event": "none", "iotype": "block-status", "errno": errno.EIO}
    return {"driver": "blkdebug", "image": view, "inject-error": [silence]}


@dataclass(frozen=True)
class SpaceWatch:
    """Ends a backup before its fleecing area is full, and says that the area is to blame if a copy failed for it."""

    area: Area
    reserve_bytes: int

    @classmethod
    def over(cls, area: Area) -> SpaceWatch:
        """Watch the space that is free there now."""
        return cls(area, min(RESERVE_BYTES, area.free_bytes() // RESERVE_SHARE))

    def check(self) -> None:
        """Raise NoSpaceError if the backup has to end, StorageError if the area cannot be asked."""
        if self.area.free_bytes() < self.reserve_bytes:
            raise self.full()

    def paced(self) -> Callable[[], None]:
        """Return ``check`` for whoever calls it at every event of a job: it asks again after TICK_S.

        To ask for the room on another host takes a round trip. ``over`` has just asked.
        """
        due = time.monotonic() + jobs.TICK_S

        def check() -> None:
            nonlocal due
            if time.monotonic() >= due:
                self.check()
                due = time.monotonic() + jobs.TICK_S

        return check

    def full(self) -> NoSpaceError:
        """Return the error for a full fleecing area."""
        return NoSpaceError(
            f"The fleecing area {self.area.place} is too small for what the guest overwrites. Nothing was kept of this"
            " backup, and no write of the guest was lost. Give it more space, or run the same command again when the"
            " guest writes less."
        )

    def explain(self, error: JobError) -> StorageError | None:
        """Return the error for a failed copy if the fleecing area lost data or cannot be read; else None."""
        fault = self.area.fault()
        if fault is None and not error.reason.is_denied:
            return None
        # The rest of the space may be there for vbackup only, which is root.
        is_short = fault is None and self.area.free_bytes() < self.reserve_bytes
        if is_short or (fault is not None and fault.errno in (errno.ENOSPC, errno.EDQUOT)):
            return self.full()
        why = f": {fault.strerror}" if fault is not None else ""
        return StorageError(
            f"QEMU could not save in the fleecing area {self.area.place} what the guest was about to overwrite{why}."
            " Nothing was kept of this backup, and no write of the guest was lost. Look for a quota or a limit on the"
            " size of a file there, and for errors of its storage in the kernel log, or use another directory."
        )
