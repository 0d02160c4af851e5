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
    TOP = "top"  #: what the topmost image of the backing chain contains
    NONE = "none"  #: only what the guest is about to overwrite
    INCREMENTAL = "incremental"  #: what is dirty in the bitmap; success clears those bits
    BITMAP = "bitmap"  #: what is dirty in the bitmap; bitmap-mode decides what happens to those bits


class BitmapSyncMode(Enum):
    """What the bitmap holds after the job, in addition to what was written since the job began (since 4.2)."""

    ON_SUCCESS = "on-success"  #: after success nothing else, after a failure all that it held before
    NEVER = "never"  #: all that it held before
    ALWAYS = "always"  #: what was not copied


class BlockdevOnError(Enum):
    """What the job does on an I/O error."""

    REPORT = "report"  #: fail
    IGNORE = "ignore"  #: continue, and copy the place later (source: continue)
    ENOSPC = "enospc"  #: pause when out of space, fail on other errors
    STOP = "stop"  #: pause
    AUTO = "auto"  #: as the device's rerror and werror options say


class OnCbwError(Enum):
    """What happens when the old data cannot be copied before a guest write overwrites it."""

    BREAK_GUEST_WRITE = "break-guest-write"  #: the guest gets the error, the backup stays correct
    BREAK_SNAPSHOT = "break-snapshot"  #: the guest continues, the backup fails


_SYNC_SINCE: Mapping[Enum, str] = {MirrorSyncMode.INCREMENTAL: "2.4", MirrorSyncMode.BITMAP: "4.2"}
_ON_ERROR_SINCE: Mapping[Enum, str] = {BlockdevOnError.AUTO: "2.7"}


@dataclass(frozen=True)
class BackupPerf(Structure):
    """Performance options of a backup job (QAPI BackupPerf, since 6.0). Unstable: any version can change them."""

    use_copy_range: bool | None = None
    max_workers: int | None = None  #: parallel requests, at least 1; default 64
    max_chunk: int | None = None  #: bytes per request, at least the job's cluster size; 0: no limit
    min_cluster_size: int | None = optional(since="9.2")  #: bytes, 0 or a power of two


@dataclass(frozen=True)
class _Backup(Action):
    """Members of both backup actions.

    Errors of both: unknown node; malformed or used job id; node in use; bitmap missing, in use or inconsistent;
    sync, bitmap and bitmap-mode that do not match (vbackup.qapi.rules); target and source of different sizes; compress
    with a format that cannot compress.
    """

    GROUPED: ClassVar[bool] = True

    device: str  #: the node to copy, or the device whose root node it is
    target: str
    sync: MirrorSyncMode = required(values_since=_SYNC_SINCE)
    job_id: str | None = optional(since="2.7")  #: default: the name of the device on the node, if it has one
    speed: int | None = None  #: bytes/s; 0: no limit
    bitmap: str | None = optional(since="3.1")  #: a bitmap on the node
    bitmap_mode: BitmapSyncMode | None = optional(since="4.2")
    compress: bool | None = optional(since="2.8")
    on_source_error: BlockdevOnError | None = optional(values_since=_ON_ERROR_SINCE)  #: default report
    on_target_error: BlockdevOnError | None = optional(values_since=_ON_ERROR_SINCE)  #: default report
    auto_finalize: bool | None = optional(since="2.12")  #: False: wait for job-finalize; default True
    auto_dismiss: bool | None = optional(since="2.12")  #: False: stay until job-dismiss; default True
    filter_node_name: str | None = optional(since="4.2")  #: of the node that is inserted above the source
    discard_source: bool | None = optional(since="9.1")  #: discard copied data in the source
    on_cbw_error: OnCbwError | None = optional(since="10.1")  #: default break-guest-write
    x_perf: BackupPerf | None = optional(since="6.0", structure=BackupPerf)


@dataclass(frozen=True)
class BlockdevBackup(_Backup):
    """blockdev-backup: copy the node as it is at this moment into the node ``target``.

    More errors: the target is the source, or the target of another job.
    """

    TYPE: ClassVar[str] = "blockdev-backup"
    SINCE: ClassVar[str] = "2.3"


@dataclass(frozen=True)
class DriveBackup(_Backup):
    """drive-backup: copy the node as it is at this moment into the file ``target``. Deprecated since 6.2.

    QEMU creates the file, in ``format`` (default: the source's), unless ``mode`` is existing; if the transaction
    fails, the file remains. blockdev-backup replaces this action.
    """

    TYPE: ClassVar[str] = "drive-backup"
    SINCE: ClassVar[str] = "1.6"

    bitmap: str | None = optional(since="2.4")
    format: str | None = None
    mode: NewImageMode | None = None
