"""Choose how target images are made and how QEMU opens them. Every choice there is, is here.

What was measured for each, and what was tried and lost, is told in vbackup(1), TUNING. Each combination is held against
a reference byte for byte in tests/end_to_end/test_tuning.py; tests/unit/test_tuning.py sees to it that none is left
out. vbackup.qemu_img makes the images, vbackup.target opens them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vbackup.model import Compression

#: qcow2's own default, and what one bit of a checkpoint's bitmap stands for: QEMU copies whole clusters of the target,
#: so with larger ones an incremental would copy more than what changed. It compresses four of them at a time.
CLUSTER_BYTES = 64 * 1024


#: How much of an image's table QEMU keeps and writes at a time: all of it. By itself it takes pieces of 4 KiB as soon
#: as not all of the tables fit into its 32 MiB, which is from 256 GiB on; and makes each new table, which stands for
#: 512 MiB, in sixteen writes, one after the other.
TABLES = {"l2-cache-entry-size": CLUSTER_BYTES}


@dataclass(frozen=True)
class ImageOptions:
    """How an image is made: options of qemu-img create for qcow2."""

    cluster_bytes: int = CLUSTER_BYTES
    compression: Compression = Compression.NONE


@dataclass(frozen=True)
class NodeOptions:
    """How QEMU has an image open: members of QAPI's BlockdevOptions.

    The defaults are QEMU's own.
    """

    no_flush: bool = False  #: QEMU leaves it to others that data gets from the page cache to the disk
    detect_zeroes: bool = False  #: zeros that the guest has written take no room

    def members(self) -> dict[str, Any]:
        """As blockdev-add and blockdev-reopen take them, without what is the default."""
        given: dict[str, Any] = {}
        if self.no_flush:
            given["cache"] = {"no-flush": True}
        if self.detect_zeroes:
            given["detect-zeroes"] = "on"
        return given


QEMUS_OWN = NodeOptions()


def image_options(compression: Compression) -> ImageOptions:
    """For all images of a backup; ``compression`` is none that is still to be chosen."""
    return ImageOptions(CLUSTER_BYTES, compression)


def node_options(*, is_local: bool) -> NodeOptions:
    """For all disks of a backup. ``is_local``: QEMU writes through the same page cache as vbackup.

    Then vbackup.writeback puts the data on the disk, while the job runs and before the backup counts: QEMU flushes
    in the middle of a job, for the order of its tables, which no unfinished image needs; and at its end, while
    the guest stands still.
    """
    return NodeOptions(no_flush=is_local, detect_zeroes=True)


def compression(asked: Compression, *, has_zstd: bool) -> Compression:
    """What is asked for, or the best that QEMU has."""
    if asked is not Compression.AUTO:
        return asked
    return Compression.ZSTD if has_zstd else Compression.ZLIB
