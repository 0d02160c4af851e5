"""Choose how target images are created and how QEMU opens them. All these choices are made here.

vbackup(1), TUNING, has the measurements for each choice, and the alternatives that lost.
tests/end_to_end/test_tuning.py compares the result of each combination with a reference, byte for byte;
tests/unit/images/test_tuning.py ensures that no combination is left out. vbackup.qemu.qemu_img creates the images,
vbackup.images.targets opens them.
"""

from __future__ import annotations

from vbackup.model import CLUSTER_BYTES, Compression, ImageOptions, NodeOptions
from vbackup.qapi.actions import BackupPerf

#: How much of an image's L2 table QEMU caches and writes at a time: a whole table. The default is 4 KiB if the tables
#: do not all fit into QEMU's cache of 32 MiB, so from 256 GiB on; QEMU then writes each new table, which maps
#: 512 MiB, in sixteen writes, one after another.
TABLES = {"l2-cache-entry-size": CLUSTER_BYTES}

#: How much of the disk a job reads and writes at a time, and how many such pieces at once. QEMU's defaults are 1 MiB
#: and 64: it gets the memory for each piece from the kernel and gives it back.
MAX_CHUNK_BYTES = 512 * 1024
MAX_WORKERS = 16


def performance(*, is_remote: bool, max_workers: int | None = None, reflinks: bool = False) -> BackupPerf | None:
    """Return the performance options of a job that copies; ``max_workers`` if it has to be less demanding.

    ``is_remote``: the disk is on a network protocol. What takes long to answer needs much on its way: with 10 ms for
    each request, 8 MiB at once took twice as long as QEMU's 64 MiB. ``reflinks``: the filesystem copies, if it can, and
    may let both files share the data (copy_file_range).
    """
    if is_remote:
        return BackupPerf(max_workers=max_workers) if max_workers is not None else None
    return BackupPerf(reflinks or None, max_workers=max_workers or MAX_WORKERS, max_chunk=MAX_CHUNK_BYTES)


def image_options(compression: Compression) -> ImageOptions:
    """Return the options for all images of a backup; ``compression`` must not be AUTO."""
    return ImageOptions(CLUSTER_BYTES, compression)


def node_options(*, is_local: bool) -> NodeOptions:
    """Return the options for all target nodes. ``is_local``: QEMU writes through the same page cache as vbackup.

    If it does, vbackup.images.writeback writes the data to storage while the job runs and before the commit. QEMU's
    own flushes cost time for nothing: those in the middle of a job keep its tables in order, which an unfinished image
    does not need, and the guest stands still during the one at the end.
    """
    return NodeOptions(no_flush=is_local, detect_zeroes=True)


def compression(asked: Compression, *, has_zstd: bool) -> Compression:
    """Return the compression that was asked for; for AUTO the best that QEMU has."""
    if asked is not Compression.AUTO:
        return asked
    return Compression.ZSTD if has_zstd else Compression.ZLIB
