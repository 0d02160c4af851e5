"""The end mark of a disk shows that the disk has been smaller, even if it has its earlier size again.

QEMU truncates the bitmaps of a disk that shrinks, and when the disk grows again none of them records the new part: a
backup that relied on the bitmaps alone would miss that the old data is gone. An end mark is an additional bitmap,
disabled, in which only the last granule of the disk is set. It is truncated like the others, and truncated bits stay
clear, so an empty end mark means that no base made at its size can be trusted. A shrink within the last granule does
not change the mark, which is why that granule is copied whatever the other bitmaps say.

A disk has one end mark for each size of its bases, so nearly always one. vbackup.engine.base reads them.
vbackup.engine.plan adds missing ones in the transaction of a backup, merged from bitmaps that vbackup.engine.scratch
prepares, because only a write sets a bit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vbackup import names
from vbackup.model import GRANULARITY_BYTES, Bitmap, DiskNode, NodeBitmap
from vbackup.names import Naming
from vbackup.qapi.actions import (
    Action,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapClear,
    BlockDirtyBitmapDisable,
    BlockDirtyBitmapMerge,
    BlockDirtyBitmapRemove,
)


@dataclass(frozen=True)
class NewMark:
    """An end mark to add, or to set again."""

    mark: NodeBitmap
    persistent: bool
    scratch: NodeBitmap  #: on a node as large as the disk, with the last granule set
    is_there: bool  #: it exists, but does not vouch
    distrusted: tuple[str, ...]  #: bitmaps to remove: the mark or the size shows that they miss a shrink

    def actions(self) -> list[Action]:
        """Return its actions for the transaction."""
        node, name = self.mark.node_name, self.mark.bitmap
        part: list[Action] = [BlockDirtyBitmapRemove(node, bitmap) for bitmap in self.distrusted]
        if self.is_there:
            part += [BlockDirtyBitmapDisable(node, name), BlockDirtyBitmapClear(node, name)]
        else:
            part.append(
                BlockDirtyBitmapAdd(
                    node, name, granularity=GRANULARITY_BYTES, persistent=self.persistent, disabled=True
                )
            )
        source = BlockDirtyBitmap(self.scratch.node_name, self.scratch.bitmap)
        return [*part, BlockDirtyBitmapMerge(node, name, (source,))]


def flaw(mark: Bitmap) -> str | None:
    """Return why a base made at the mark's size cannot be trusted, or None.

    An inconsistent mark shows nothing, like a missing one.
    """
    if mark.inconsistent:
        return None
    if mark.busy:
        return "the disk's end mark is busy with another operation"
    if mark.recording:
        return "the disk's end mark was enabled, so it may not show that the disk was shrunk"
    if not mark.dirty_bytes:
        return "the disk has been shrunk and grown again"
    return None


def vouches(mark: Bitmap | None) -> bool:
    """Return True if the mark proves that the disk has never been smaller than the mark's size since it was made."""
    return mark is not None and not mark.inconsistent and flaw(mark) is None


def new_mark(
    node: DiskNode, *, naming: Naming, scratch_node: str, shrank: bool, trusted: Collection[str]
) -> NewMark | None:
    """Return the end mark of the disk's present size that a backup with a checkpoint has to make, or None.

    ``shrank`` is True if a base shows that the disk was larger. ``trusted`` has the bitmaps that this backup uses.
    """
    top = node.top
    name = naming.end_mark(node.disk.dev, top.virtual_size_bytes)
    present = top.bitmaps.get(name)
    if vouches(present) or not top.virtual_size_bytes:
        return None
    is_there = present is not None and not present.inconsistent
    distrusted = [
        bitmap for bitmap in _checkpoints(node, naming) if bitmap.name not in trusted and (is_there or shrank)
    ]
    if any(bitmap.busy for bitmap in distrusted) or (present is not None and present.busy):
        # QEMU cannot remove these bitmaps now, or cannot change the mark. The mark goes on distrusting them.
        if is_there:
            return None
        distrusted = [bitmap for bitmap in distrusted if not bitmap.busy]
    return NewMark(
        mark=NodeBitmap(top.node_name, name),
        persistent=node.keeps_bitmaps,
        scratch=NodeBitmap(scratch_node, naming.scratch_job),
        is_there=is_there,
        distrusted=tuple(bitmap.name for bitmap in distrusted),
    )


def _checkpoints(node: DiskNode, naming: Naming) -> list[Bitmap]:
    """Return the bitmaps of the repository's checkpoints on the active layer, whichever backup made them."""
    checkpoints = []
    for name, bitmap in sorted(node.top.bitmaps.items()):  # sorted only to print equal plans alike
        parsed = names.parse_bitmap(name)
        if parsed is not None and not parsed.working and parsed.repository_id == naming.repository_id:
            checkpoints.append(bitmap)
    return checkpoints
