"""The QAPI transaction actions that a backup is made of, as JSON-ready objects.

Each function is one action of QAPI's TransactionAction and has its member names. vbackup.plan puts
them in order; the monitor sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vbackup.model import BitmapSource

Action = dict[str, Any]

#: 64 KiB: QEMU's own default for images with clusters of 64 KiB or more, and the smallest piece a backup job copies.
GRANULARITY_BYTES = 65536


def bitmap_add(node_name: str, name: str, *, persistent: bool) -> Action:
    """block-dirty-bitmap-add: an empty bitmap that records from now on."""
    data = {"node": node_name, "name": name, "granularity": GRANULARITY_BYTES, "persistent": persistent}
    return {"type": "block-dirty-bitmap-add", "data": data}


def bitmap_disable(node_name: str, name: str) -> Action:
    """block-dirty-bitmap-disable: it records no more."""
    return {"type": "block-dirty-bitmap-disable", "data": {"node": node_name, "name": name}}


def bitmap_merge(node_name: str, target: str, sources: Sequence[BitmapSource]) -> Action:
    """block-dirty-bitmap-merge: what is dirty in one of the sources becomes dirty in the target."""
    bitmaps = [{"node": source.node_name, "name": source.bitmap} for source in sources]
    return {"type": "block-dirty-bitmap-merge", "data": {"node": node_name, "target": target, "bitmaps": bitmaps}}


def backup(
    job_id: str,
    *,
    node_name: str,
    target: str,
    bitmap: str | None,
    speed_bytes_s: int | None,
    compress: bool,
) -> Action:
    """blockdev-backup: copy the node as it is at this moment into the target node.

    With a bitmap only what is dirty in it. The bitmap is a working one that is thrown away, so it is
    left as it is whatever the outcome (bitmap-mode never). The job neither finalises nor dismisses
    itself: all jobs of a backup end together (vbackup.job).
    """
    data: Action = {
        "job-id": job_id,
        "device": node_name,
        "target": target,
        "sync": "full",
        "compress": compress,
        "auto-finalize": False,
        "auto-dismiss": False,
    }
    if bitmap is not None:
        data.update({"sync": "bitmap", "bitmap": bitmap, "bitmap-mode": "never"})
    if speed_bytes_s is not None:
        data["speed"] = speed_bytes_s
    return {"type": "blockdev-backup", "data": data}


def abort() -> Action:
    """abort: fails when its turn comes, so QEMU prepares all other actions and undoes them."""
    return {"type": "abort", "data": {}}
