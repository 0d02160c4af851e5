"""The actions on dirty bitmaps (QAPI BlockDirtyBitmapAdd, BlockDirtyBitmap, BlockDirtyBitmapMerge).

Each takes a node by its node-name, or by the name of the device whose root node it is. QEMU undoes it if a later
action fails.
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
    """block-dirty-bitmap-add: create an empty bitmap that records from now on.

    ``granularity`` is the number of bytes per bit: a power of two, at least 512; QEMU's default is the image's
    cluster size, but at least 4 KiB and at most 64 KiB. QEMU stores a ``persistent`` bitmap in the image when it
    closes the image (qcow2 version 3 only). A ``disabled`` bitmap does not record.

    Errors: unknown node; a name that is empty, longer than 1023 bytes, or used on the node, even by a bitmap that this
    transaction removes; invalid granularity; an image that cannot store bitmaps.
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

    Errors of all: unknown node or bitmap; a bitmap that a job uses, that the same transaction has already removed,
    that is inconsistent (QEMU did not close its image), or that is read-only.
    """

    node: str
    name: str


@dataclass(frozen=True)
class BlockDirtyBitmapClear(_OneBitmap):
    """block-dirty-bitmap-clear: make the bitmap empty; it keeps recording if it was."""

    TYPE: ClassVar[str] = "block-dirty-bitmap-clear"
    SINCE: ClassVar[str] = "2.5"


@dataclass(frozen=True)
class BlockDirtyBitmapEnable(_OneBitmap):
    """block-dirty-bitmap-enable: start recording in the bitmap."""

    TYPE: ClassVar[str] = "block-dirty-bitmap-enable"
    SINCE: ClassVar[str] = "4.0"


@dataclass(frozen=True)
class BlockDirtyBitmapDisable(_OneBitmap):
    """block-dirty-bitmap-disable: stop recording in the bitmap, which keeps what it holds."""

    TYPE: ClassVar[str] = "block-dirty-bitmap-disable"
    SINCE: ClassVar[str] = "4.0"


@dataclass(frozen=True)
class BlockDirtyBitmapRemove(_OneBitmap):
    """block-dirty-bitmap-remove: remove the bitmap, from the image too.

    QEMU removes it when all actions have succeeded: until then its name is not free, and it cannot be used. An
    inconsistent bitmap can be removed.
    """

    TYPE: ClassVar[str] = "block-dirty-bitmap-remove"
    SINCE: ClassVar[str] = "4.1"


@dataclass(frozen=True)
class BlockDirtyBitmapMerge(Action):
    """block-dirty-bitmap-merge: make dirty in the target what is dirty in any of the sources.

    A bare name in ``bitmaps`` is a bitmap of ``node``; a BlockDirtyBitmap is one of another node. Granularities may
    differ; the sizes of the disks may not.

    Errors: those of the other bitmap actions, for target and sources; different sizes.
    """

    TYPE: ClassVar[str] = "block-dirty-bitmap-merge"
    SINCE: ClassVar[str] = "4.0"

    node: str
    target: str
    bitmaps: tuple[str | BlockDirtyBitmap, ...]
