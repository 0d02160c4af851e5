"""A tracker's checkpoints as a history: what a session starts from is chosen, and proved, as for a backup.

vbackup.engine.base, vbackup.engine.underlay and vbackup.engine.endmark do it. A checkpoint depends on no other: whether
the client still has what it has pulled is for the client to know.
"""

from __future__ import annotations

from vbackup.model import Backup, BlockDriver, Consistency, DiskImage, Level
from vbackup.repository.history import History
from vbackup.sessions.checkpoint import Checkpoint, TrackedDisk
from vbackup.sessions.trackers import Tracker


def of(tracker: Tracker) -> History:
    """Return the history that the tracker's checkpoints make."""
    return History([_backup(one, tracker) for one in tracker.checkpoints], is_of_tracker=True)


def _backup(checkpoint: Checkpoint, tracker: Tracker) -> Backup:
    return Backup(
        id=checkpoint.id,
        sequence=checkpoint.sequence,
        level=checkpoint.level,
        parent=None,
        time=checkpoint.time,
        domain_name=tracker.domain_name,
        domain_uuid=tracker.domain_uuid,
        disks=tuple(_image(disk) for disk in checkpoint.disks.values()),
        left_out=(),
        consistency=Consistency.CRASH,
        frozen_ms=0,
        duration_s=0.0,
        files={},
        versions={},
    )


def _image(disk: TrackedDisk) -> DiskImage:
    return DiskImage(
        dev=disk.dev,
        level=disk.level if disk.level is Level.FULL else Level.INCREMENTAL,
        base=None,
        reason="",
        file="",
        virtual_size_bytes=disk.size_bytes,
        file_size_bytes=0,
        copied_bytes=0,
        digest=None,
        bitmap=disk.bitmap,
        node_name=disk.node_name,
        source=None,
        source_format=BlockDriver.RAW,
        chain=disk.chain,
    )
