"""The actions that start a backup job (QAPI BackupCommon, BlockdevBackup, DriveBackup)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from vbackup.qapi.actions.base import Action
from vbackup.qapi.actions.members import Structure, optional, required
from vbackup.qapi.actions.snapshots import NewImageMode


class MirrorSyncMode(Enum):
    """What a job copies."""

    FULL = "full"  #: everything
    TOP = "top"  #: what the topmost image of the chain has
    NONE = "none"  #: only what is about to be written over
    INCREMENTAL = "incremental"  #: what is dirty in the bitmap, which is cleared of it on success
    BITMAP = "bitmap"  #: what is dirty in the bitmap; bitmap-mode says what becomes of that


class BitmapSyncMode(Enum):
    """What becomes of the bitmap when the job has ended (since 4.2)."""

    ON_SUCCESS = "on-success"  #: after success it has what was written since the job began; else it is as it was
    NEVER = "never"  #: it is as it was, and has what was written since
    ALWAYS = "always"  #: after a failure it has what was not copied


class BlockdevOnError(Enum):
    """What the job does at an I/O error."""

    REPORT = "report"  #: fail
    IGNORE = "ignore"  #: go on and copy the place later (source: go on)
    ENOSPC = "enospc"  #: stop for lack of space, fail for other errors
    STOP = "stop"  #: pause
    AUTO = "auto"  #: as the device's own rerror and werror say


class OnCbwError(Enum):
    """What happens when the old data cannot be copied out of the way of a guest's write."""

    BREAK_GUEST_WRITE = "break-guest-write"  #: the guest gets the error, the backup stays right
    BREAK_SNAPSHOT = "break-snapshot"  #: the guest goes on, the backup fails


_SYNC_SINCE: Mapping[Enum, str] = {MirrorSyncMode.INCREMENTAL: "2.4", MirrorSyncMode.BITMAP: "4.2"}
_ON_ERROR_SINCE: Mapping[Enum, str] = {BlockdevOnError.AUTO: "2.7"}


@dataclass(frozen=True)
class BackupPerf(Structure):
    """How a backup job works (QAPI BackupPerf, since 6.0): unstable, it can change in any version."""

    use_copy_range: bool | None = None
    max_workers: int | None = None  #: requests at a time, from 1; 64 by default
    max_chunk: int | None = None  #: bytes a request, from the job's cluster size; 0: no limit
    min_cluster_size: int | None = optional(since="9.2")  #: bytes, a power of two, or 0


@dataclass(frozen=True)
class _Backup(Action):
    """What both backups have.

    Errors of both: no such node, an odd or taken job id, a node that is in use, a bitmap that is missing,
    in use or inconsistent, sync, bitmap and bitmap-mode that do not go together (vbackup.qapi.rules), target and
    source of different sizes, compress with a format that does not compress.
    """

    GROUPED: ClassVar[bool] = True

    device: str  #: the node to copy, or the device that it is the root of
    target: str
    sync: MirrorSyncMode = required(values_since=_SYNC_SINCE)
    job_id: str | None = optional(since="2.7")  #: default: the device's name, where the node has a named one
    speed: int | None = None  #: bytes/s, 0: no limit
    bitmap: str | None = optional(since="3.1")  #: a bitmap on the node
    bitmap_mode: BitmapSyncMode | None = optional(since="4.2")
    compress: bool | None = optional(since="2.8")
    on_source_error: BlockdevOnError | None = optional(values_since=_ON_ERROR_SINCE)  #: default report
    on_target_error: BlockdevOnError | None = optional(values_since=_ON_ERROR_SINCE)  #: default report
    auto_finalize: bool | None = optional(since="2.12")  #: False: job-finalize ends it; default True
    auto_dismiss: bool | None = optional(since="2.12")  #: False: job-dismiss ends it; default True
    filter_node_name: str | None = optional(since="4.2")  #: of the node that stands above the source
    discard_source: bool | None = optional(since="9.1")  #: discard in the source what was copied
    on_cbw_error: OnCbwError | None = optional(since="10.1")  #: default break-guest-write
    x_perf: BackupPerf | None = optional(since="6.0", structure=BackupPerf)


@dataclass(frozen=True)
class BlockdevBackup(_Backup):
    """blockdev-backup: copy the node as it is at this moment into the node ``target``.

    Errors: also a target that is the source, or the target of another job.
    """

    TYPE: ClassVar[str] = "blockdev-backup"
    SINCE: ClassVar[str] = "2.3"


@dataclass(frozen=True)
class DriveBackup(_Backup):
    """drive-backup: copy the node as it is at this moment into the file ``target``. Deprecated since 6.2.

    QEMU makes the file, in ``format`` (default: the source's), unless ``mode`` is existing; the file stays
    behind if the transaction fails. blockdev-backup is the modern way.
    """

    TYPE: ClassVar[str] = "drive-backup"
    SINCE: ClassVar[str] = "1.6"

    bitmap: str | None = optional(since="2.4")
    format: str | None = None
    mode: NewImageMode | None = None
