"""The actions on dirty bitmaps (QAPI BlockDirtyBitmapAdd, BlockDirtyBitmap, BlockDirtyBitmapMerge).

All take a node by its node-name, or by the name of the device it is the root of. What they have
done is undone if a later action fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vbackup.qapi.actions.base import Action
from vbackup.qapi.actions.members import Structure, optional

#: QEMU's limits for bitmap-add.
MIN_GRANULARITY_BYTES, MAX_GRANULARITY_BYTES = 512, 2**31
MAX_NAME_BYTES = 1023


@dataclass(frozen=True)
class BlockDirtyBitmap(Structure):
    """A bitmap on a node (QAPI BlockDirtyBitmap, since 2.4)."""

    node: str
    name: str


@dataclass(frozen=True)
class BlockDirtyBitmapAdd(Action):
    """block-dirty-bitmap-add: an empty bitmap that records from now on.

    ``granularity`` is the bytes that one bit stands for: a power of two from 512; QEMU's default is the
    image's cluster size, at least 4 KiB and at most 64 KiB. A ``persistent`` bitmap is stored in the
    image when that is closed (qcow2 of version 3 only). A ``disabled`` one does not record.

    Errors: no such node, the name is empty, longer than 1023 bytes or taken on the node (by a bitmap that
    this transaction removes, too), odd granularity, or the image stores no bitmaps.
    """

    TYPE: ClassVar[str] = "block-dirty-bitmap-add"
    SINCE: ClassVar[str] = "2.5"

    node: str
    name: str
    granularity: int | None = None  #: bytes
    persistent: bool | None = optional(since="2.10")
    disabled: bool | None = optional(since="4.0")


@dataclass(frozen=True)
class _OneBitmap(Action):
    """An action on one bitmap.

    Errors of all: no such node or bitmap, the bitmap is in use by a job or removed earlier in the same
    transaction, it is inconsistent (QEMU did not close its image), or read-only.
    """

    node: str
    name: str


@dataclass(frozen=True)
class BlockDirtyBitmapClear(_OneBitmap):
    """block-dirty-bitmap-clear: nothing is dirty any more; whether it records stays as it is."""

    TYPE: ClassVar[str] = "block-dirty-bitmap-clear"
    SINCE: ClassVar[str] = "2.5"


@dataclass(frozen=True)
class BlockDirtyBitmapEnable(_OneBitmap):
    """block-dirty-bitmap-enable: it records from now on."""

    TYPE: ClassVar[str] = "block-dirty-bitmap-enable"
    SINCE: ClassVar[str] = "4.0"


@dataclass(frozen=True)
class BlockDirtyBitmapDisable(_OneBitmap):
    """block-dirty-bitmap-disable: it records no more, and keeps what it has."""

    TYPE: ClassVar[str] = "block-dirty-bitmap-disable"
    SINCE: ClassVar[str] = "4.0"


@dataclass(frozen=True)
class BlockDirtyBitmapRemove(_OneBitmap):
    """block-dirty-bitmap-remove: the bitmap goes, from the image too.

    It goes when all actions have succeeded: until then it keeps its name and cannot be used. An inconsistent bitmap
    can be removed.
    """

    TYPE: ClassVar[str] = "block-dirty-bitmap-remove"
    SINCE: ClassVar[str] = "4.1"


@dataclass(frozen=True)
class BlockDirtyBitmapMerge(Action):
    """block-dirty-bitmap-merge: what is dirty in one of the sources becomes dirty in the target.

    A bare name among ``bitmaps`` is a bitmap of ``node``; another node's is a BlockDirtyBitmap. Granularities
    may differ; the disks' sizes may not.

    Errors: those of the other bitmap actions for target and sources, and different sizes.
    """

    TYPE: ClassVar[str] = "block-dirty-bitmap-merge"
    SINCE: ClassVar[str] = "4.0"

    node: str
    target: str
    bitmaps: tuple[str | BlockDirtyBitmap, ...]
