"""Decide how a full finds what there is to copy, so that it costs what the disk contains and not how large it is.

A job with sync=full goes through the whole disk in pieces of at most 1 MiB, and writes a table for every 512 MiB of it,
whether there is data or not: 40 TiB with 2 MiB of data took 100 s and 5 GiB of tables (QEMU 7.2). Two other ways leave
alone what no layer has allocated, which reads as zeros:

- A qcow2 image without a backing file: sync=top, which copies what that image has allocated.
- A chain, or a disk whose copy reads a view of it: a bitmap of what each layer has allocated, which
  vbackup.engine.allocation_jobs gets from QEMU before the moment of the backup. The bitmap of the active layer also
  records what is written from then on. Their union, taken in the transaction, drives the copy like that of an
  incremental. It may contain too much, which is then copied as zeros, but never too little: a layer below does not
  change, and what is written to the active one is recorded.

A raw image has no such notion. The filesystem knows where its file has data (vbackup.images.raw_data); where that
cannot be asked, the image counts as allocated up to its size.
"""

from __future__ import annotations

from dataclasses import dataclass

from vbackup.model import BlockDriver, DiskNode, Layer, NodeBitmap
from vbackup.names import Naming
from vbackup.qapi.actions import MirrorSyncMode

#: The bitmaps are worth their commands, some 20 ms a layer, if this much of the disk is not allocated: sync=full then
#: takes at most 0.3 s and 16 MiB more.
WORTH_BYTES = 128 * 1024**3
#: The same for a view whose block status QEMU does not tell: all that is not allocated would be read.
WORTH_UNTOLD_BYTES = 1024**3

#: From libvirt 11 on at the latest, a raw disk has no node of the raw format, only that of its file or device.
_RAW = (BlockDriver.RAW, BlockDriver("file"), BlockDriver("host_device"))
_NONE = NodeBitmap("", "")


@dataclass(frozen=True)
class LayerAllocation:
    """A layer, and the bitmap on it of what it has allocated."""

    bitmap: NodeBitmap
    size_bytes: int
    raw_path: str | None = None  #: of a raw image, if it is a file
    allocated_bytes: int = 0  #: storage that its file takes, as far as QEMU says


@dataclass(frozen=True)
class Allocation:
    """How the whole of a disk is copied."""

    sync: MirrorSyncMode = MirrorSyncMode.FULL
    layers: tuple[LayerAllocation, ...] = ()  #: those that are asked, the active one first; none unless by bitmaps
    job_id: str = ""  #: of the jobs that ask them, one after the other
    extended: NodeBitmap = _NONE  #: on a node as large as the disk, of what smaller layers have
    file_data: NodeBitmap = _NONE  #: on a node as large as the disk, of where a raw image has data
    sources: tuple[NodeBitmap, ...] = ()  #: those that drive the copy, once they have been set

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self.layers[0].size_bytes


#: The whole disk is read.
ALL = Allocation()

#: QEMU takes 25 ms a TiB to look at what a layer has allocated, and does nothing else meanwhile. From this size on it
#: does so before the moment of the backup, at which the guest may be frozen.
LONG_BYTES = 8 * 1024**4


def of_full(
    node: DiskNode,
    *,
    backup_id: str,
    naming: Naming,
    index: int = 0,
    has_view: bool = False,
    tells_zeros: bool = True,
) -> Allocation:
    """Return how to copy the whole disk, which is the ``index``-th of the backup.

    ``has_view``: the copy reads a view of the disk (vbackup.engine.fleecing); ``tells_zeros``: with its block status.
    """
    if any(layer.driver not in (BlockDriver.QCOW2, *_RAW) for layer in node.layers):
        return ALL
    size_bytes = node.top.virtual_size_bytes
    is_one_image = len(node.layers) == 1 and node.top.driver == BlockDriver.QCOW2 and not has_view
    if is_one_image and size_bytes < LONG_BYTES:
        return Allocation(MirrorSyncMode.TOP)
    if size_bytes - _allocated_bytes(node) < (WORTH_BYTES if tells_zeros else WORTH_UNTOLD_BYTES):
        return Allocation(MirrorSyncMode.TOP) if is_one_image else ALL
    if any(layer.virtual_size_bytes > size_bytes for layer in node.layers):
        return ALL
    name, job_id = naming.allocation_bitmap(backup_id, node.disk.dev), naming.allocation_job(backup_id, node.disk.dev)
    layers = [
        LayerAllocation(
            NodeBitmap(one.node_name, name),
            one.virtual_size_bytes,
            raw_path=one.filename if _is_file(one) else None,
            allocated_bytes=one.allocated_bytes or 0,
        )
        for one in node.layers
    ]
    # The names of the bitmaps differ: bitmaps are removed by their names.
    return Allocation(
        MirrorSyncMode.BITMAP,
        tuple(layers),
        job_id,
        NodeBitmap(naming.extended_node(index), job_id),
        NodeBitmap(naming.file_data_node(index), job_id),
    )


def _is_file(layer: Layer) -> bool:
    """Return True for a raw image that may be a file and is used as a whole: QEMU shows one with an offset as json."""
    return layer.driver in _RAW and layer.filename.startswith("/")


def _allocated_bytes(node: DiskNode) -> int:
    """Return how much of the disk its layers may have allocated, at most."""
    return sum(
        # A block device takes no storage, as far as QEMU says.
        layer.allocated_bytes
        if (layer.driver == BlockDriver.QCOW2 or _is_file(layer)) and layer.allocated_bytes
        else layer.virtual_size_bytes
        for layer in node.layers
    )
