"""One disk of a planned backup: its image, bitmaps and jobs, and its part of the transactions.

vbackup.engine.plan makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vbackup import names
from vbackup.engine.allocation import ALL, Allocation
from vbackup.engine.base import Choice
from vbackup.engine.endmark import NewMark
from vbackup.images import tuning
from vbackup.model import GRANULARITY_BYTES, DiskImage, DiskNode, NodeBitmap
from vbackup.qapi.actions import (
    Action,
    BitmapSyncMode,
    BlockdevBackup,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapRemove,
    MirrorSyncMode,
    OnCbwError,
)


@dataclass(frozen=True)
class FleecingPlan:
    """The jobs and nodes between a disk and its copy with fleecing (vbackup.engine.fleecing)."""

    job_id: str
    node: str  #: receives the data that the guest is about to overwrite
    filter_node: str  #: the job's filter above the disk, which copies that data
    view: str  #: shows the disk as it was at the moment of the backup; the copy reads it
    on_cbw_error: OnCbwError | None  #: what an error of ``node`` does; None: it has none (vbackup.engine.fleecing)
    tells_zeros: bool  #: the copy may skip ranges that the view reports as zeros
    max_workers: int  #: number of parallel requests of the copy

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes to close after the jobs have ended, each before the node that it uses."""
        return self.view, self.node


@dataclass(frozen=True)
class DiskPlan:
    """One disk of the backup."""

    node: DiskNode
    choice: Choice
    job_id: str
    target_node: str
    bitmap: str | None  #: of the new checkpoint; None for a copy, and for a disk that cannot have one
    working_name: str  #: of the bitmap that selects what is copied, if there is one
    fleecing: FleecingPlan | None = None
    reflinks: bool = False  #: the image may share its data with the disk
    allocation: Allocation = ALL  #: how a full finds what to copy
    new_mark: NewMark | None = None  #: an end mark to add or reset (vbackup.engine.endmark)

    @property
    def dev(self) -> str:
        """Name of the disk."""
        return self.node.disk.dev

    @property
    def file(self) -> str:
        """File name of the image in the backup's directory."""
        return f"{self.dev}.qcow2"

    @property
    def working_bitmap(self) -> str | None:
        """The bitmap that selects what is copied; None for a full without bitmaps of what is allocated."""
        return self.working_name if self.choice.base is not None or self.allocation.layers else None

    @property
    def backing_rpath(self) -> str | None:
        """Path of the base's image in the image's header, relative to the backup's directory; None without a base."""
        return f"../{self.choice.base.id}/{self.file}" if self.choice.base else None

    @property
    def relied_on_marks(self) -> tuple[NodeBitmap, ...]:
        """The end marks on the active layer that the choice of the base relies on."""
        top = self.node.top.node_name
        return tuple(
            one for one in self.choice.bitmaps if one.node_name == top and names.parse_end_mark(one.bitmap) is not None
        )

    def draft(self) -> DiskImage:
        """Return the image as it is known before anything is copied."""
        return DiskImage(
            dev=self.dev,
            level=self.choice.level,
            base=self.choice.base.id if self.choice.base else None,
            reason=self.choice.reason,
            file=self.file,
            virtual_size_bytes=self.node.top.virtual_size_bytes,
            file_size_bytes=0,
            copied_bytes=0,
            digest=None,
            bitmap=self.bitmap,
            node_name=self.node.top.node_name,
            source=self.node.disk.path,
            source_format=self.node.disk.format,
            encrypted=self.node.disk.encrypted,
            chain=self.node.looked_at if self.bitmap is not None else None,
        )

    def actions(self, *, speed_bytes_s: int | None, compress: bool) -> list[Action]:
        """Return the disk's part of the transaction.

        The base's bitmap keeps recording and is not changed: a failed backup costs nothing, and its retry starts from
        the same base. The copy is driven by the working bitmap, which is disabled so that it does not contain what the
        guest writes after this moment. Members with QEMU's default are left out, because QEMU reads commands byte by
        byte, 5 us each (measured on 7.2 and 11.1).
        """
        node = self.node.top.node_name
        part: list[Action] = self.new_mark.actions() if self.new_mark is not None else []
        if self.bitmap is not None:
            part.append(_new_bitmap(node, self.bitmap, persistent=self.node.keeps_bitmaps or None))
        if self.working_bitmap is not None:
            sources = self.choice.bitmaps if self.choice.base is not None else self.allocation.sources
            merged = tuple(BlockDirtyBitmap(one.node_name, one.bitmap) for one in sources)
            part.append(_new_bitmap(node, self.working_bitmap, disabled=True))
            part.append(BlockDirtyBitmapMerge(node, self.working_bitmap, merged))
        asked = [layer.bitmap for layer in self.allocation.layers]
        part += [BlockDirtyBitmapRemove(one.node_name, one.bitmap) for one in asked]
        if self.fleecing is None:
            part.append(self._job(node, speed_bytes_s=speed_bytes_s, compress=compress))
        else:
            part.append(self._fleecing_job(self.fleecing))
        return part

    def copy_actions(self, *, speed_bytes_s: int | None, compress: bool) -> list[Action]:
        """Return the disk's part of the second transaction, with fleecing: the copy of what the view shows."""
        assert self.fleecing is not None
        view, part = self.fleecing.view, list[Action]()
        if self.working_bitmap is not None:
            source = BlockDirtyBitmap(self.node.top.node_name, self.working_bitmap)
            part.append(_new_bitmap(view, self.working_bitmap, disabled=True))
            part.append(BlockDirtyBitmapMerge(view, self.working_bitmap, (source,)))
        part.append(self._job(view, speed_bytes_s=speed_bytes_s, compress=compress))
        return part

    def _fleecing_job(self, fleecing: FleecingPlan) -> BlockdevBackup:
        """Return the job that saves what the guest is about to overwrite, and nothing else, until it is cancelled."""
        return BlockdevBackup(
            job_id=fleecing.job_id,
            device=self.node.top.node_name,
            target=fleecing.node,
            sync=MirrorSyncMode.NONE,
            filter_node_name=fleecing.filter_node,
            on_cbw_error=fleecing.on_cbw_error,
            auto_finalize=False,
            auto_dismiss=False,
        )

    def _job(self, device: str, *, speed_bytes_s: int | None, compress: bool) -> BlockdevBackup:
        """Return the job that copies.

        It leaves the working bitmap as it is (bitmap-mode never), because that is removed afterwards anyway. It neither
        finalizes nor dismisses itself: all jobs of a backup end together (vbackup.qemu.jobs).
        """
        by_bitmap = self.working_bitmap is not None
        return BlockdevBackup(
            job_id=self.job_id,
            device=device,
            target=self.target_node,
            sync=MirrorSyncMode.BITMAP if by_bitmap else self.allocation.sync,
            bitmap=self.working_bitmap,
            bitmap_mode=BitmapSyncMode.NEVER if by_bitmap else None,
            speed=speed_bytes_s,
            compress=compress or None,
            auto_finalize=False,
            auto_dismiss=False,
            x_perf=tuning.performance(
                is_remote=self.node.disk.path is None,
                max_workers=self.fleecing.max_workers if self.fleecing else None,
                reflinks=self.reflinks,
            ),
        )


def _new_bitmap(
    node: str, name: str, *, persistent: bool | None = None, disabled: bool | None = None
) -> BlockDirtyBitmapAdd:
    return BlockDirtyBitmapAdd(node, name, granularity=GRANULARITY_BYTES, persistent=persistent, disabled=disabled)
