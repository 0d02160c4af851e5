"""The end mark of a disk: it tells that the disk has been smaller, though it is as large again by now.

QEMU cuts the bitmaps of a disk that shrinks, and has none of them note what the disk then grows by: a backup by
bitmap alone would miss that the old data is gone. An end mark is one more bitmap, disabled, in which only the last
granule of the disk is set. It is cut like the others, and what was cut is clear for good, so an empty one
distrusts every base that was made at its size. A shrink that stays within the last granule leaves the mark as it
is, which is why that granule is copied whatever the other bitmaps say.

There is one for each size that a base of the disk has, which is one nearly always. vbackup.engine.base asks
them, vbackup.engine.plan has missing ones made in the transaction of a backup, from what vbackup.engine.scratch
prepares: there a bit can be set, as nothing but a write sets one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.model import GRANULARITY_BYTES, Bitmap, DiskNode, NodeBitmap
from vbackup.names import Naming

if TYPE_CHECKING:
    from vbackup.qapi.actions import Action


@dataclass(frozen=True)
class NewMark:
    """An end mark to be made, or to be made anew."""

    mark: NodeBitmap
    persistent: bool
    scratch: NodeBitmap  #: of a node as large as the disk, with the last granule set
    is_there: bool  #: and does not vouch
    distrusted: tuple[str, ...]  #: bitmaps that it, or the disk's size, has given away; it must not vouch for them

    def actions(self) -> list[Action]:
        """Its part of the transaction."""
        from vbackup.qapi.actions import (  # which chains do without, and so does what lists them
            BlockDirtyBitmap,
            BlockDirtyBitmapAdd,
            BlockDirtyBitmapClear,
            BlockDirtyBitmapDisable,
            BlockDirtyBitmapMerge,
            BlockDirtyBitmapRemove,
        )

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
    """Why a base made at the mark's size is not to be trusted; None where it may be.

    An inconsistent one says nothing, as if there were none.
    """
    if mark.inconsistent:
        return None
    if mark.busy:
        return "the disk's end mark is busy with another operation"
    if mark.recording:
        return "the disk's end mark was enabled, so it may not tell that the disk was shrunk"
    if not mark.dirty_bytes:
        return "the disk was shrunk meanwhile, and has grown again"
    return None


def vouches(mark: Bitmap | None) -> bool:
    """True if the disk has had the mark's size, or a larger one, ever since it was made."""
    return mark is not None and not mark.inconsistent and flaw(mark) is None


def new_mark(
    node: DiskNode, *, naming: Naming, scratch_node: str, shrank: bool, trusted: Collection[str]
) -> NewMark | None:
    """What a backup that makes a checkpoint does about the mark of the disk's size as it is; None: nothing.

    ``shrank`` is true where a base shows that the disk was larger, ``trusted`` has the bitmaps it starts from.
    """
    top = node.top
    name = naming.end_mark(node.disk.dev, top.virtual_size_bytes)
    there = top.bitmaps.get(name)
    if vouches(there) or not top.virtual_size_bytes:
        return None
    is_there = there is not None and not there.inconsistent
    distrusted = [
        bitmap for bitmap in _checkpoints(node, naming) if bitmap.name not in trusted and (is_there or shrank)
    ]
    if any(bitmap.busy for bitmap in distrusted) or (there is not None and there.busy):
        # They cannot be removed, or it not be changed, now. It goes on distrusting them.
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
    """The repository's checkpoints on the active layer, whichever backup made them."""
    found = []
    for name, bitmap in sorted(node.top.bitmaps.items()):
        ours = names.parse_bitmap(name)
        if ours is not None and not ours.working and ours.repository_id == naming.repository_id:
            found.append(bitmap)
    return found
