"""A whole pull session as data: what each disk starts from, its bitmaps, and the one transaction that is its moment.

vbackup.engine.session_survey gathers what it is made from, vbackup.operations.session_begin carries it out.

A running domain's disk gets an overlay in the scratch directory, into which a job copies what the guest is about to
overwrite (blockdev-backup, sync=none); the overlay is what is exported. The bitmaps of the changes since each
checkpoint are on the overlay, merged in the same transaction. A domain that is off has no guest that writes: its disks
are exported as they are, read-only, and the new checkpoint's bitmap is added when the session is committed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vbackup.engine import endmark, plan
from vbackup.engine.base import Choice, level_of, parent_of
from vbackup.engine.endmark import NewMark
from vbackup.model import GRANULARITY_BYTES, DiskNode, Level, NodeBitmap
from vbackup.names import Naming
from vbackup.qapi.actions import (
    Action,
    BlockdevBackup,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    MirrorSyncMode,
)
from vbackup.repository.history import History
from vbackup.sessions.checkpoint import Checkpoint, TrackedDisk

#: How NBD names the context of a dirty bitmap (docs/interop/nbd.txt of QEMU).
CONTEXT_PREFIX = "qemu:dirty-bitmap:"


@dataclass(frozen=True)
class NewBitmap:
    """The bitmap of a new checkpoint on one disk."""

    node: DiskNode
    name: str
    mark: NewMark | None  #: an end mark to add or to set again

    @property
    def place(self) -> NodeBitmap:
        """The bitmap and its node."""
        return NodeBitmap(self.node.top.node_name, self.name)

    def actions(self) -> list[Action]:
        """Return the actions that begin the checkpoint."""
        part: list[Action] = self.mark.actions() if self.mark is not None else []
        persistent = self.node.keeps_bitmaps or None
        return [
            *part,
            BlockDirtyBitmapAdd(
                self.node.top.node_name, self.name, granularity=GRANULARITY_BYTES, persistent=persistent
            ),
        ]


@dataclass(frozen=True)
class SessionDiskPlan:
    """One disk of a session."""

    node: DiskNode
    choice: Choice
    since: Mapping[str, Choice]  #: what shows the changes since a checkpoint, by its id, for each that can be trusted
    new: NewBitmap | None  #: of the new checkpoint; None for a disk that cannot have one
    exported: str  #: node that is exported: the overlay, or the active layer of a disk without a guest
    job_id: str | None  #: of the job that fills the overlay; None without one
    filter_node: str
    export: str  #: name of the export
    export_id: str

    @property
    def dev(self) -> str:
        """Name of the disk."""
        return self.node.disk.dev

    @property
    def has_guest(self) -> bool:
        """True if a guest can write to it meanwhile: its domain is running."""
        return self.job_id is not None

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self.node.top.virtual_size_bytes

    @property
    def contexts(self) -> Mapping[str, str]:
        """The metadata context of the changes since each checkpoint."""
        return {checkpoint: f"{CONTEXT_PREFIX}{checkpoint}" for checkpoint in self.since}

    def bitmap_actions(self) -> list[Action]:
        """Return what begins the checkpoint, and merges what has changed since each earlier one."""
        part: list[Action] = self.new.actions() if self.has_guest and self.new is not None else []
        for checkpoint, choice in self.since.items():
            sources = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in choice.bitmaps)
            part.append(BlockDirtyBitmapAdd(self.exported, checkpoint, granularity=GRANULARITY_BYTES, disabled=True))
            part.append(BlockDirtyBitmapMerge(self.exported, checkpoint, sources))
        return part

    def job_actions(self) -> list[Action]:
        """Return what starts the job that fills the overlay."""
        if self.job_id is None:
            return []
        return [
            BlockdevBackup(
                job_id=self.job_id,
                device=self.node.top.node_name,
                target=self.exported,
                sync=MirrorSyncMode.NONE,
                filter_node_name=self.filter_node,
                auto_finalize=False,
                auto_dismiss=False,
            )
        ]


@dataclass(frozen=True)
class SessionPlan:
    """All disks of a session at one moment."""

    id: str  #: of the session
    checkpoint: str
    sequence: int
    level: Level  #: as granted for the domain as a whole
    base: str | None  #: the newest checkpoint that a disk starts from
    disks: tuple[SessionDiskPlan, ...]

    def moment(self) -> list[dict[str, Any]]:
        """Return the transaction's actions as JSON-ready data; empty if nothing is to be done.

        The jobs come first: QEMU keeps the disk of each drained from then to the end of the transaction
        (blockdev_backup_prepare in its blockdev.c). Otherwise a guest with an iothread, which goes on while the main
        loop works, could write between the merging of a bitmap and the start of the job: it would be in the disk that
        is served, and not among the changes.
        """
        jobs = [action for disk in self.disks for action in disk.job_actions()]
        bitmaps = [action for disk in self.disks for action in disk.bitmap_actions()]
        return [action.document() for action in (*jobs, *bitmaps)]

    @property
    def new(self) -> list[NewBitmap]:
        """The bitmaps of the new checkpoint."""
        return [disk.new for disk in self.disks if disk.new is not None]

    @property
    def new_marks(self) -> list[NodeBitmap]:
        """The end marks that the transaction adds."""
        marks = [one.mark for one in self.new if one.mark is not None and not one.mark.is_there]
        return [mark.mark for mark in marks]

    @property
    def job_ids(self) -> list[str]:
        """The jobs that fill the overlays."""
        return [disk.job_id for disk in self.disks if disk.job_id is not None]

    def pending(self, nodes: Sequence[DiskNode], *, time: datetime) -> Checkpoint:
        """Return what ``commit`` gives the tracker; ``nodes`` has the disks as they are just after the moment."""
        disks = [
            TrackedDisk(
                dev=disk.dev,
                level=disk.choice.level,
                size_bytes=disk.size_bytes,
                bitmap=None if disk.new is None else disk.new.name,
                node_name=disk.node.top.node_name,
                chain=node.looked_at if disk.new is not None or not disk.has_guest else None,
            )
            for disk, node in zip(self.disks, nodes)
        ]
        return Checkpoint(
            id=self.checkpoint,
            sequence=self.sequence,
            time=time,
            session=self.id,
            level=self.level,
            disks={disk.dev: disk for disk in disks},
        )


@dataclass(frozen=True)
class DiskChoice:
    """A disk, what it starts from, and what else could be trusted."""

    node: DiskNode
    choice: Choice
    since: Mapping[str, Choice]


def make(
    choices: Sequence[DiskChoice],
    *,
    session_id: str,
    level: Level,
    last_sequence: int,
    taken_ids: Collection[str],
    history: History,
    naming: Naming,
    token: str,
    now: datetime,
    is_running: bool,
) -> SessionPlan:
    """Name everything and put the plan together. ``level`` is the one that was asked for."""
    granted = level_of(level, [one.choice for one in choices])
    checkpoint = plan.free_id(now, granted, taken_ids)
    sizes = sizes_of([one.node for one in choices])
    disks = []
    for index, one in enumerate(choices):
        dev = one.node.disk.dev
        new = None
        if one.node.bears_checkpoints:
            trusted = [each.bitmap for choice in one.since.values() for each in choice.bitmaps]
            name = naming.bitmap(checkpoint, dev, token)
            new = new_bitmap(one.node, name, history=history, naming=naming, sizes=sizes, trusted=trusted)
        disks.append(
            SessionDiskPlan(
                node=one.node,
                choice=one.choice,
                since=one.since,
                new=new,
                exported=naming.fleecing_node(index) if is_running else one.node.top.node_name,
                job_id=naming.fleecing_job(checkpoint, dev) if is_running else None,
                filter_node=naming.fleecing_filter(index),
                export=f"{session_id}-{dev}",
                export_id=f"{naming.prefix}{session_id}-{dev}",
            )
        )
    return SessionPlan(
        id=session_id,
        checkpoint=checkpoint,
        sequence=last_sequence + 1,
        level=granted,
        base=parent_of([one.choice for one in choices]),
        disks=tuple(disks),
    )


def new_bitmap(
    node: DiskNode,
    name: str,
    *,
    history: History,
    naming: Naming,
    sizes: Sequence[int],
    trusted: Collection[str],
) -> NewBitmap:
    """Return the bitmap of a new checkpoint with the end mark that it needs; ``sizes`` as for ``scratch_sizes``.

    ``trusted`` has the bitmaps that show the changes since an earlier checkpoint.
    """
    size_bytes = node.top.virtual_size_bytes
    mark = endmark.new_mark(
        node,
        naming=naming,
        scratch_node=naming.scratch_node(sizes.index(size_bytes)),
        shrank=history.largest_base_bytes(node.disk.dev) > size_bytes,
        trusted=trusted,
    )
    return NewBitmap(node, name, mark)


def sizes_of(nodes: Sequence[DiskNode]) -> list[int]:
    """Return the sizes that disks have: those of one size share a node on which their end marks are prepared."""
    return sorted({node.top.virtual_size_bytes for node in nodes})


def scratch_sizes(new: Sequence[NewBitmap]) -> Mapping[str, int]:
    """Return the sizes in bytes of the nodes, by name, that new end marks are merged from (vbackup.engine.scratch)."""
    return {one.mark.scratch.node_name: one.node.top.virtual_size_bytes for one in new if one.mark is not None}
