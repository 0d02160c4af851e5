"""Roll disks back in a storage daemon: write what differs from a backup, with the disks' bitmaps recording.

QEMU copies from the backup's chain into the disk, by a bitmap on the chain that has the blocks that differ. The bitmaps
of the disk record these writes like all others, and the daemon stores them also if vbackup is killed: so an interrupted
rollback that is run again starts from what is true. If the daemon itself is killed, QEMU finds its bitmaps inconsistent
and nobody trusts them.

From before the first write to the end the disk has a mark, a bitmap that says what it is in the middle of. It goes
where the image goes, and no backup is made of such a disk (vbackup.engine.survey).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vbackup import names
from vbackup.engine import endmark, restored_checkpoint, scratch, underlay
from vbackup.engine.base import Choice
from vbackup.engine.endmark import NewMark
from vbackup.engine.rollback_reach import Here, Reach
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import (
    NoSpaceError,
    OutputDiffersError,
    QmpError,
    StorageError,
    UnsuitableError,
)
from vbackup.images import targets, tuning
from vbackup.images.flatten import layers_of
from vbackup.images.opened_point import flat_nodes
from vbackup.model import GRANULARITY_BYTES, Backup, DiskNode, Layer, Level
from vbackup.qapi.actions import (
    Action,
    BitmapSyncMode,
    BlockdevBackup,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapRemove,
    MirrorSyncMode,
)
from vbackup.qemu import jobs, nbd_client, qcow2_bitmap
from vbackup.qemu.monitor import Monitor
from vbackup.qemu.nbd_client import NbdClient
from vbackup.qemu.stored_bitmap import StoredBitmap
from vbackup.qemu.transaction import send, tuned
from vbackup.report import Phase, Reporter
from vbackup.repository import changed_blocks
from vbackup.repository.block_list import SEGMENT_BLOCKS, SEGMENT_BYTES
from vbackup.repository.changed_blocks import Blocks, Point
from vbackup.repository.history import RestoredDisk, image_of
from vbackup.undo import Undo

_CHANGED, _PLANNED = "changed", "planned"


@dataclass(frozen=True)
class DiskRollback:
    """A disk, the point that it is rolled back to, and the blocks to write."""

    node: DiskNode
    choice: Choice  #: the newest backup that the disk's bitmaps record the changes since, and these bitmaps
    point: Point
    blocks: Blocks

    @property
    def dev(self) -> str:
        """Name of the disk."""
        return self.node.disk.dev

    @property
    def backup(self) -> Backup:
        """The backup that it is rolled back to."""
        return self.point.chain[0][0].backup

    @property
    def top(self) -> str:
        """The node that is written."""
        return self.node.top.node_name

    @property
    def recorded_layers(self) -> tuple[Layer, ...]:
        """The layers with the bitmaps that record the changes, the active one first."""
        having = {one.node_name for one in self.choice.bitmaps}
        return tuple(layer for layer in self.node.layers if layer.node_name in having)

    @property
    def is_resized(self) -> bool:
        """True if the disk has another size than at the point."""
        return self.node.top.virtual_size_bytes != self.point.size_bytes


def dirty(monitor: Monitor, node: DiskNode, choice: Choice) -> dict[int, int]:
    """Return the blocks that the bitmaps record as changed since the base, by segment.

    QEMU tells which bits are set only by storing a bitmap in an image: here in one that is in memory.
    """
    size_bytes = node.top.virtual_size_bytes
    sources = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in choice.bitmaps)
    with _bits(monitor, "rollback-dirty", size_bytes) as fd:
        actions: list[Action] = [
            BlockDirtyBitmapAdd(
                "rollback-dirty", _CHANGED, granularity=GRANULARITY_BYTES, persistent=True, disabled=True
            ),
            BlockDirtyBitmapMerge("rollback-dirty", _CHANGED, sources),
        ]
        send(monitor, {"actions": [action.document() for action in actions]})
        monitor.execute("blockdev-del", {"node-name": "rollback-dirty"})  # which stores it
        stored = StoredBitmap(fd, _CHANGED)
        masks = {
            number: stored.mask(number * SEGMENT_BLOCKS, SEGMENT_BLOCKS)
            for number in range(-(-size_bytes // SEGMENT_BYTES))
        }
    return {number: mask for number, mask in masks.items() if mask}


@contextmanager
def _bits(
    monitor: Monitor, node_name: str, size_bytes: int, blocks: Blocks | None = None, *, below: str | None = None
) -> Iterator[int]:
    """Open an image in memory with a bitmap of these blocks, and yield its descriptor; it is closed after the block.

    It reads as the node ``below`` does, and beyond that as zeros.
    """
    fd = os.memfd_create("vbackup-bits", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            extents = changed_blocks.extents(blocks or {}, size_bytes)
            qcow2_bitmap.write(file, size_bytes, name=_PLANNED, extents=extents)
        options = {**targets.node(node_name, f"/proc/{os.getpid()}/fd/{fd}"), "backing": below}
        del options["l2-cache-entry-size"]  # its clusters are larger
        monitor.execute("blockdev-add", options)
        yield fd
        targets.close_in_qemu(monitor, [node_name])
    finally:
        os.close(fd)


def begin(
    disks: Sequence[DiskRollback],
    domain: LockedDomain,
    *,
    store: Callable[[Layer], None],
    checkpoint: bool,
    is_own: bool = True,
) -> dict[str, RestoredDisk]:
    """Mark the disks, and return the records of the checkpoints, by dev; their content is as it was.

    ``store`` is that of the domain's OffSource. ``checkpoint``: record the restored checkpoints. ``is_own``: the disks
    are the domain's own, so that its next backup finds them as they are then, and not those of a standby. Raises
    NoSpaceError, StorageError, StorageDaemonGoneError.
    """
    recorded = _recorded(disks, domain, is_own=is_own) if checkpoint else {}
    _mark(disks, domain, store)
    return recorded


def carry_out(
    disks: Sequence[DiskRollback],
    domain: LockedDomain,
    recorded: Mapping[str, RestoredDisk],
    *,
    store: Callable[[Layer], None],
    speed_bytes_s: int | None,
    reach: Reach | None = None,
) -> None:
    """Write the disks, compare what was written with the lists, and let their next backups start from the point.

    From the first write on an error leaves disks that are in the middle; the same rollback run again is right.
    ``recorded`` is what ``begin`` has returned: these disks get the bitmap of the checkpoint. ``reach``: how the images
    of the repository and the disks are in one QEMU; None: the domain's monitor has both. Raises NoSpaceError,
    StorageError, OutputDiffersError, InterruptedBySignalError, StorageDaemonGoneError.
    """
    reach = Here(domain.monitor) if reach is None else reach
    _resize([disk for disk in disks if disk.point.size_bytes > disk.node.top.virtual_size_bytes], domain)
    _copy([disk for disk in disks if disk.blocks], domain, reach, speed_bytes_s)
    _store(disks, store)
    _verify(disks, domain, reach)
    # A disk that is smaller than at the base is not trusted, so a run that is killed before this can be run again.
    _resize([disk for disk in disks if disk.point.size_bytes < disk.node.top.virtual_size_bytes], domain)
    _finish(disks, domain, recorded)
    _store(disks, store)


def _recorded(disks: Sequence[DiskRollback], domain: LockedDomain, *, is_own: bool) -> dict[str, RestoredDisk]:
    """Record the restored checkpoints, by dev, while nothing is written yet; none if the repository is only read."""
    chosen = [disk for disk in disks if image_of(disk.backup, disk.dev).level is not Level.COPY]
    chains = [underlay.remembered(disk.node.chain, [disk.choice.chain], is_trusted=True) for disk in chosen]
    try:
        made = restored_checkpoint.record(
            [(disk.dev, disk.backup, chain) for disk, chain in zip(chosen, chains)],
            uuid=domain.uuid,
            repository=domain.repository,
            is_in_place=is_own,
        )
    except StorageError as err:
        domain.reporter.warning(f"The next backup starts from the newest one, and not from the restored one: {err}")
        return {}
    return {one.dev: one for one in made}


def _store(disks: Sequence[DiskRollback], store: Callable[[Layer], None]) -> None:
    for disk in disks:
        with _refusals(disk):
            store(disk.node.top)


def _resize(disks: Sequence[DiskRollback], domain: LockedDomain) -> None:
    for disk in disks:
        with _refusals(disk):
            domain.monitor.execute("block_resize", {"node-name": disk.top, "size": disk.point.size_bytes})


def _mark(disks: Sequence[DiskRollback], domain: LockedDomain, store: Callable[[Layer], None]) -> None:
    """Add the marks, and store them: from here on everybody who opens an image sees what it is in the middle of."""
    actions: list[Action] = []
    for disk in disks:
        name, present = domain.naming.rollback_mark(disk.backup.id, disk.dev), marks_of(disk.node.top)
        if name not in present:  # in one transaction QEMU does not add a persistent bitmap that it removes
            actions.append(BlockDirtyBitmapAdd(disk.top, name, granularity=GRANULARITY_BYTES, persistent=True))
        actions += [BlockDirtyBitmapRemove(disk.top, mark) for mark in present if mark != name]
    if actions:
        send(domain.monitor, {"actions": [action.document() for action in actions]})
    _store(disks, store)


def marks_of(layer: Layer) -> list[str]:
    """Return the marks of rollbacks that a layer has: of one that was interrupted, of any repository."""
    return [name for name in sorted(layer.bitmaps) if names.parse_rollback_mark(name) is not None]


def _copy(disks: Sequence[DiskRollback], domain: LockedDomain, reach: Reach, speed_bytes_s: int | None) -> None:
    if not disks:
        return
    monitor = reach.monitor
    with ExitStack() as stack:
        actions: list[Action] = []
        for number, disk in enumerate(disks):
            node, bits = f"point-{number}", f"rollback-bits-{number}"
            for options in flat_nodes(node, layers_of(disk.point.chain)):
                monitor.execute("blockdev-add", options)
            # As large as the disk, as the job wants it, if the disk is larger than the point.
            size_bytes = max(disk.point.size_bytes, disk.node.top.virtual_size_bytes)
            stack.enter_context(_bits(monitor, bits, size_bytes, disk.blocks, below=node))
            actions.append(BlockDirtyBitmapAdd(bits, _CHANGED, granularity=GRANULARITY_BYTES, disabled=True))
            actions.append(BlockDirtyBitmapMerge(bits, _CHANGED, (BlockDirtyBitmap(bits, _PLANNED),)))
            target = stack.enter_context(reach.written(disk.dev, disk.top))
            actions.append(_job(disk, bits, target, speed_bytes_s))
        domain.stop.check()
        tuned(lambda sent: send(monitor, {"actions": sent}), [action.document() for action in actions])
        devs = [disk.dev for disk in disks]
        try:
            done = jobs.follow(
                monitor,
                devs,
                together=True,
                reporter=domain.reporter,
                stop=domain.stop,
                stall_s=jobs.stall_limit_s(speed_bytes_s),
            )
            for dev, job in done.items():
                if job.error is not None and job.error.is_no_space:
                    raise NoSpaceError(f"Disk {dev}: no space left for its image.")
                if job.error is not None:
                    raise StorageError(f"Disk {dev}: QEMU could not copy the backup to it: {job.error.rstrip('.')}.")
        finally:
            jobs.cancel(monitor, devs)


def _job(disk: DiskRollback, node: str, target: str, speed_bytes_s: int | None) -> BlockdevBackup:
    """Return the job that copies the blocks of the bitmap from the point to the disk. Its id names the disk."""
    return BlockdevBackup(
        job_id=disk.dev,
        device=node,
        target=target,
        sync=MirrorSyncMode.BITMAP,
        bitmap=_CHANGED,
        bitmap_mode=BitmapSyncMode.NEVER,
        speed=speed_bytes_s,
        auto_finalize=False,
        auto_dismiss=False,
        x_perf=tuning.performance(is_remote=False),
    )


def _verify(disks: Sequence[DiskRollback], domain: LockedDomain, reach: Reach) -> None:
    """Read what was written through QEMU, as the guest will, whatever the image is like, and compare it."""
    reporter = domain.reporter
    for disk in disks:
        total_bytes = changed_blocks.count_bytes(disk.blocks)
        with reach.read(disk.dev, disk.top) as address, NbdClient(address) as client:
            wrong = changed_blocks.first_difference(
                disk.point,
                disk.blocks,
                client,
                max_read_bytes=nbd_client.MAX_READ_BYTES,
                check=domain.stop.check,
                progress=_progress(reporter, disk.dev, total_bytes),
            )
        if wrong is not None:
            raise OutputDiffersError(disk.dev, disk.node.disk.path or disk.top, wrong, was_written=True)


def _progress(reporter: Reporter, dev: str, total_bytes: int) -> Callable[[int], None]:
    return lambda done_bytes: reporter.progress(dev, Phase.CHECK, min(done_bytes, total_bytes), total_bytes)


def _finish(disks: Sequence[DiskRollback], domain: LockedDomain, recorded: Mapping[str, RestoredDisk]) -> None:
    """Remove the marks, and in the same transaction give the disks the bitmaps of the restored checkpoints."""
    naming, monitor = domain.naming, domain.monitor
    actions: list[Action] = [
        BlockDirtyBitmapRemove(disk.top, naming.rollback_mark(disk.backup.id, disk.dev)) for disk in disks
    ]
    with ExitStack() as stack:
        chosen = [disk for disk in disks if disk.dev in recorded and _opened_for_writing(disk, domain, stack)]
        if chosen:
            with Undo(domain.reporter) as undo:
                actions += _checkpoint_actions(chosen, recorded, domain, undo)
                send(monitor, {"actions": [action.document() for action in actions]})
            return
        send(monitor, {"actions": [action.document() for action in actions]})


def _opened_for_writing(disk: DiskRollback, domain: LockedDomain, stack: ExitStack) -> bool:
    """Open the layers below for writing that record changes too; return False if a disk goes on with what it has."""
    try:
        for layer in disk.recorded_layers[1:]:
            stack.enter_context(domain.source.writable(layer))
    except (QmpError, UnsuitableError) as err:
        domain.reporter.step(f"Disk {disk.dev}: its next backup starts from an older checkpoint than it could: {err}")
        return False
    return True


def _checkpoint_actions(
    disks: Sequence[DiskRollback], recorded: Mapping[str, RestoredDisk], domain: LockedDomain, undo: Undo
) -> list[Action]:
    naming = domain.naming
    fresh = {node.disk.dev: node for node in domain.source.disk_nodes([disk.node.disk for disk in disks])}
    sizes = sorted({disk.point.size_bytes for disk in disks})
    new_marks: list[NewMark] = []
    for disk in disks:
        mark = endmark.new_mark(
            fresh[disk.dev],
            naming=naming,
            scratch_node=naming.scratch_node(sizes.index(disk.point.size_bytes)),
            shrank=False,
            trusted=[one.bitmap for one in disk.choice.bitmaps],
        )
        new_marks += [] if mark is None else [mark]
    needed = {mark.scratch.node_name for mark in new_marks}
    scratch.prepare(
        domain.monitor,
        {name: size for size in sizes if (name := naming.scratch_node(sizes.index(size))) in needed},
        naming=naming,
        undo=undo,
        stop=domain.stop,
    )
    actions = [action for mark in new_marks for action in mark.actions()]
    for disk in disks:
        name = recorded[disk.dev].bitmap
        actions += [
            BlockDirtyBitmapAdd(layer.node_name, name, granularity=GRANULARITY_BYTES, persistent=True)
            for layer in disk.recorded_layers
        ]
    return actions


@contextmanager
def _refusals(disk: DiskRollback) -> Iterator[None]:
    try:
        yield
    except QmpError as err:
        if err.description.is_no_space:
            raise NoSpaceError(f"Disk {disk.dev}: no space left for its image.") from err
        raise StorageError(f"Disk {disk.dev}: QEMU cannot write it: {err.description.rstrip('.')}.") from err
