"""Choose how target images are made and how QEMU opens them. Every choice there is, is here.

What was measured for each, and what was tried and lost, is told in vbackup(1), TUNING. Each combination is held against
a reference byte for byte in tests/end_to_end/test_tuning.py; tests/unit/images/test_tuning.py sees to it that none is
left out. vbackup.qemu.qemu_img makes the images, vbackup.images.targets opens them.
"""

from __future__ import annotations

from vbackup.model import CLUSTER_BYTES, Compression, ImageOptions, NodeOptions

#: How much of an image's table QEMU keeps and writes at a time: all of it. By itself it takes pieces of 4 KiB as soon
#: as not all of the tables fit into its 32 MiB, which is from 256 GiB on; and makes each new table, which stands for
#: 512 MiB, in sixteen writes, one after the other.
TABLES = {"l2-cache-entry-size": CLUSTER_BYTES}


def image_options(compression: Compression) -> ImageOptions:
    """For all images of a backup; ``compression`` is none that is still to be chosen."""
    return ImageOptions(CLUSTER_BYTES, compression)


def node_options(*, is_local: bool) -> NodeOptions:
    """For all disks of a backup. ``is_local``: QEMU writes through the same page cache as vbackup.

    Then vbackup.images.writeback puts the data on the disk, while the job runs and before the backup counts: QEMU
    flushes in the middle of a job, for the order of its tables, which no unfinished image needs; and at its end,
    while the guest stands still.
    """
    return NodeOptions(no_flush=is_local, detect_zeroes=True)


def compression(asked: Compression, *, has_zstd: bool) -> Compression:
    """What is asked for, or the best that QEMU has."""
    if asked is not Compression.AUTO:
        return asked
    return Compression.ZSTD if has_zstd else Compression.ZLIB
