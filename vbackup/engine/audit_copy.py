"""Read a sample of a running domain's disks as they are at one moment, and which blocks had changed until then.

An audit (vbackup.operations.audit) compares both with the newest backup. It works as an incremental does: one
transaction merges the bitmaps of the base and starts a backup job for each disk. But the job is driven by a bitmap of
chosen blocks, and it writes to a copy that is thrown away.

- The chosen blocks come to QEMU, and the changed blocks from it, as bitmaps in a qcow2 image that nothing else is in
  (vbackup.qemu.qcow2_bitmap, vbackup.qemu.stored_bitmap). An export by NBD would tell them too, but a QEMU has one NBD
  server, which libvirt's pull backups need; and with what it exports, the data would go through a socket.
- Before the guest overwrites a chosen block that has not been read yet, QEMU saves it in the copy, and the guest waits
  for that. The copy is one member of a quorum, and the other takes every write without keeping anything: no error of
  the copy, such as a full filesystem, reaches the guest. What the copy lacks then is seen, because only the tables of
  the image count (vbackup.qemu.qcow2_layer). A view (snapshot-access) is not needed, which QEMU 7.2 reads wrongly.
- The files have no names: whatever ends vbackup, nothing of them stays. What a killed audit leaves in QEMU has names of
  this repository, so the next vbackup removes it (vbackup.engine.leftovers).
- A QEMU on another host works on copies of the files there (vbackup.engine.audit_scratch): no write of its guest waits
  for the network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vbackup.engine import endmark, leftovers, underlay
from vbackup.engine.audit_scratch import REMEDY, Scratch
from vbackup.engine.base import Choice
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import (
    BusyError,
    DomainGoneError,
    JobError,
    NoSpaceError,
    QmpError,
    StorageError,
    UnsuitableError,
    VbackupError,
)
from vbackup.files import nameless, storage_errors
from vbackup.images import targets, tuning
from vbackup.model import GRANULARITY_BYTES, DiskNode, NodeBitmap, SecurityLabel
from vbackup.names import Naming, parse_end_mark
from vbackup.qapi.actions import (
    Action,
    BitmapSyncMode,
    BlockdevBackup,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    MirrorSyncMode,
)
from vbackup.qemu import jobs, qcow2_bitmap, qemu_img
from vbackup.qemu.jobs import Job
from vbackup.qemu.monitor import Monitor, block_nodes, schema
from vbackup.qemu.transaction import send, tuned
from vbackup.repository.audit_sample import Sample
from vbackup.undo import Undo

#: Free space that is left where the copies are, at least.
RESERVE_BYTES, RESERVE_SHARE = 64 * 1024 * 1024, 8
#: What the images of a disk take besides its data: headers and bitmaps, a table for each segment with data, and two
#: clusters of bits for a TiB (vbackup.qemu.qcow2_bitmap).
_BASE_BYTES, _TABLE_BYTES, _BITS_BYTES, _TIB = 8 << 20, 64 * 1024, 2 * (2 << 20), 1 << 40
#: The bitmaps in the image of bitmaps.
SAMPLE, CHANGED = "sample", "changed"
_DRIVERS = frozenset(("quorum", "null-co"))


@dataclass(frozen=True)
class Wish:
    """A disk to read, its base, and what of it is read."""

    node: DiskNode
    choice: Choice
    sample: Sample


@dataclass(frozen=True)
class Limits:
    """How the disks are read."""

    scratch: Scratch  #: for the copies
    speed_bytes_s: int | None = None  #: of each disk's job
    on_tick: Callable[[Mapping[str, Job]], None] | None = None  #: slows the jobs down


@dataclass(frozen=True)
class Copied:
    """What was read of a disk: descriptors of two images that nothing has open any more."""

    copy_fd: int
    bits_fd: int


@dataclass(frozen=True)
class _Names:
    naming: Naming
    audit_id: str


@dataclass(frozen=True)
class _Disk:
    wish: Wish
    job_id: str
    working: str
    copy_node: str
    bits_node: str
    copied: Copied

    @property
    def dev(self) -> str:
        return self.wish.node.disk.dev

    @property
    def top(self) -> str:
        return self.wish.node.top.node_name

    def actions(self, speed_bytes_s: int | None) -> list[Action]:
        """Return the disk's part of the transaction; the copy is driven as that of an incremental."""
        changed = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in self.wish.choice.bitmaps)
        sample = BlockDirtyBitmap(self.bits_node, SAMPLE)
        return [
            BlockDirtyBitmapAdd(self.bits_node, CHANGED, granularity=GRANULARITY_BYTES, persistent=True, disabled=True),
            BlockDirtyBitmapMerge(self.bits_node, CHANGED, changed),
            BlockDirtyBitmapAdd(self.top, self.working, granularity=GRANULARITY_BYTES, disabled=True),
            BlockDirtyBitmapMerge(self.top, self.working, (sample,)),
            BlockdevBackup(
                job_id=self.job_id,
                device=self.top,
                target=self.copy_node,
                sync=MirrorSyncMode.BITMAP,
                bitmap=self.working,
                bitmap_mode=BitmapSyncMode.NEVER,
                speed=speed_bytes_s,
                auto_finalize=False,
                auto_dismiss=False,
                x_perf=tuning.performance(is_remote=self.wish.node.disk.path is None),
            ),
        ]


def needed_bytes(wishes: Sequence[Wish]) -> int:
    """Return how much space the copies take at most."""
    return sum(
        _BASE_BYTES
        + one.sample.blocks * GRANULARITY_BYTES
        + 2 * len(one.sample.masks) * _TABLE_BYTES
        + -(-one.node.top.virtual_size_bytes // _TIB) * _BITS_BYTES
        for one in wishes
    )


@contextmanager
def taken(
    wishes: Sequence[Wish], domain: LockedDomain, limits: Limits, *, audit_id: str
) -> Iterator[tuple[datetime, list[Copied]]]:
    """Read the disks, and yield the moment they are of and what was read, in the order of ``wishes``.

    Nothing is left in QEMU then. Raises UnsuitableError if QEMU cannot do it without a risk to the guest, NoSpaceError,
    StorageError, BusyError, VbackupError (a job failed).
    """
    scratch = limits.scratch
    _refuse_full(scratch, needed_bytes(wishes))
    _refuse_without_drivers(domain.monitor)
    with ExitStack() as files:
        disks = [
            _planned(wish, index, scratch.here, names=_Names(domain.naming, audit_id), files=files)
            for index, wish in enumerate(wishes)
        ]
        files.callback(scratch.close)
        working = [NodeBitmap(disk.top, disk.working) for disk in disks]
        with scratch.guarded(domain.naming, working), Undo(domain.reporter) as undo:
            moment = _read(disks, domain, limits, undo=undo)
        for disk in disks:
            fetched_bytes = sum(
                scratch.fetch(fd, check=domain.stop.check) for fd in (disk.copied.bits_fd, disk.copied.copy_fd)
            )
            if fetched_bytes:
                domain.reporter.step(f"Disk {disk.dev}: {fetched_bytes >> 20} MiB came from {scratch.place}.")
        yield moment, [disk.copied for disk in disks]


def _planned(wish: Wish, index: int, directory: Path, *, names: _Names, files: ExitStack) -> _Disk:
    with storage_errors(f"make a file in {directory}"):
        copy_fd, bits_fd = (nameless(directory) for _ in range(2))
        files.callback(os.close, copy_fd)
        files.callback(os.close, bits_fd)
        with os.fdopen(os.dup(bits_fd), "wb") as file:
            size_bytes = wish.node.top.virtual_size_bytes
            qcow2_bitmap.write(file, size_bytes, name=SAMPLE, extents=wish.sample.extents())
    dev = wish.node.disk.dev
    qemu_img.create_in(copy_fd, size_bytes, what=f"make an image in {directory}")
    return _Disk(
        wish,
        names.naming.job(names.audit_id, dev),
        names.naming.working_bitmap(names.audit_id, dev),
        names.naming.audit_copy(index),
        names.naming.audit_bits(index),
        Copied(copy_fd, bits_fd),
    )


def _read(disks: Sequence[_Disk], domain: LockedDomain, limits: Limits, *, undo: Undo) -> datetime:
    monitor, source, reporter = domain.monitor, domain.source, domain.reporter
    tops = {disk.dev: disk.top for disk in disks}
    undo.push("close detached disks", lambda: _close_detached(domain, tops))
    working = [NodeBitmap(disk.top, disk.working) for disk in disks]
    undo.push("remove the bitmaps of the audit", lambda: leftovers.remove_bitmaps(monitor, working))
    nodes = [name for disk in disks for name in (disk.copy_node, disk.bits_node)]
    undo.push("close the images of the audit in QEMU", lambda: targets.close_in_qemu(monitor, nodes))
    labels = source.domain.security_labels
    for disk in disks:
        _open(disk, domain, limits.scratch, labels)
    guest_was_stopped = source.is_guest_stopped()
    undo.push("resume the guest", lambda: source.resume(reporter, guest_was_stopped=guest_was_stopped))
    job_ids = {disk.job_id: disk.dev for disk in disks}
    undo.push("end the jobs of the audit", lambda: jobs.cancel(monitor, job_ids))
    actions = [action.document() for disk in disks for action in disk.actions(limits.speed_bytes_s)]
    watch = SpaceWatch.over(limits.scratch)
    with source.unchanged():
        domain.stop.check()
        moment = datetime.now(timezone.utc)
        try:
            tuned(lambda document: send(monitor, {"actions": document}), actions)
        except QmpError as err:
            if err.description.is_of_lock:
                raise source.locked_out() from err
            raise
        _refuse_changed(disks, domain)
        _follow(job_ids, domain, limits, watch)
    return moment


def _follow(job_ids: Mapping[str, str], domain: LockedDomain, limits: Limits, watch: SpaceWatch) -> None:
    def on_tick(known: Mapping[str, Job]) -> None:
        watch.check()
        if limits.on_tick is not None:
            limits.on_tick(known)

    try:
        jobs.run(
            domain.monitor,
            job_ids,
            reporter=domain.reporter,
            stop=domain.stop,
            stall_s=jobs.stall_limit_s(limits.speed_bytes_s),
            on_tick=on_tick,
        )
    except JobError as err:
        if domain.source.has_ended():  # QEMU cancels its jobs as it ends, which is seen first
            raise DomainGoneError(domain.source.handle.name) from err
        raise VbackupError(
            f"Disk {err.dev}: the audit could not read it: {err.reason.rstrip('.')}. Nothing of the audit is left; fix"
            " the cause and run the same command again."
        ) from err


def _close_detached(domain: LockedDomain, tops: Mapping[str, str]) -> None:
    for dev in domain.source.close_detached(tops):
        domain.reporter.step(f"Disk {dev} was detached during the audit.")


def _refuse_changed(disks: Sequence[_Disk], domain: LockedDomain) -> None:
    """Raise BusyError if something that no bitmap shows has changed since the bases were chosen.

    That is a file below the bitmaps, or the size of a disk: one that was shrunk and grown has zeros at its end.
    """
    described = jobs.over_losses(domain.monitor, lambda: block_nodes(domain.monitor), stop=domain.stop)
    for disk in disks:
        for one in disk.wish.choice.bitmaps:
            mark = described.bitmaps(one.node_name).get(one.bitmap)
            if parse_end_mark(one.bitmap) is not None and mark is not None and not endmark.vouches(mark):
                raise BusyError(f"Disk {disk.dev} was made smaller while the audit began; run the same command again.")
    nodes = jobs.over_losses(
        domain.monitor, lambda: domain.source.look_at([disk.wish.node for disk in disks]), stop=domain.stop
    )
    for disk, node in zip(disks, nodes):
        path = underlay.changed(disk.wish.node.chain, node.chain)
        if path is not None:
            raise BusyError(f"Disk {disk.dev}: {path} was changed while the audit began; run the same command again.")


def _refuse_without_drivers(monitor: Monitor) -> None:
    missing = sorted(_DRIVERS - schema(monitor).block_drivers())
    if missing:
        raise UnsuitableError(
            f"This QEMU cannot be audited: it lacks the block driver {missing[0]}, without which an error of the"
            " audit's scratch space could reach the guest."
        )


def _open(disk: _Disk, domain: LockedDomain, scratch: Scratch, labels: Sequence[SecurityLabel]) -> None:
    """Open both images; no write to the copy fails."""
    monitor, check = domain.monitor, domain.stop.check
    size_bytes = disk.wish.node.top.virtual_size_bytes
    try:
        bits = targets.node(disk.bits_node, scratch.lend(monitor, disk.copied.bits_fd, disk.bits_node, check=check))
        del bits["l2-cache-entry-size"]  # its clusters are larger
        monitor.execute("blockdev-add", bits)
        copy = targets.node(disk.copy_node, scratch.lend(monitor, disk.copied.copy_fd, disk.copy_node, check=check))
        del copy["node-name"]
        # In QEMU's log stands that the target does not tell its cluster size: a quorum cannot. It is the default.
        nowhere = {"driver": "null-co", "size": size_bytes, "read-zeroes": False}
        monitor.execute(
            "blockdev-add",
            {
                "driver": "quorum",
                "node-name": disk.copy_node,
                "children": [copy, nowhere],
                "vote-threshold": 1,
                "read-pattern": "fifo",
            },
        )
    except QmpError as err:
        if err.description.is_denied:
            raise StorageError(scratch.denied(labels, err.description)) from err
        raise StorageError(f"QEMU cannot open an image in {scratch.place}: {err.description.rstrip('.')}.") from err


def _refuse_full(scratch: Scratch, size_bytes: int) -> None:
    for room in scratch.rooms():
        if room.free_bytes < size_bytes + min(RESERVE_BYTES, room.free_bytes // RESERVE_SHARE):
            raise NoSpaceError(
                f"The audit needs up to {size_bytes >> 20} MiB for what it reads, and {room.place} has"
                f" {room.free_bytes >> 20} MiB. Nothing was read; give it {room.remedy}."
            )


@dataclass(frozen=True)
class SpaceWatch:
    """Ends an audit before the filesystem of its copies is full."""

    scratch: Scratch
    reserve_bytes: int

    @classmethod
    def over(cls, scratch: Scratch) -> SpaceWatch:
        """Watch the space that is free there now."""
        return cls(scratch, min(RESERVE_BYTES, scratch.free_bytes() // RESERVE_SHARE))

    def check(self) -> None:
        """Raise NoSpaceError if the audit has to end."""
        if self.scratch.free_bytes() < self.reserve_bytes:
            raise NoSpaceError(
                f"{self.scratch.place} is getting full, so the audit was ended; no write of the guest was lost. Give it"
                f" {REMEDY}."
            )
