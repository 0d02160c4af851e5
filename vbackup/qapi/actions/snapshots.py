"""The actions that take a snapshot (QAPI BlockdevSnapshot, BlockdevSnapshotInternal, BlockdevSnapshotSync)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from vbackup.qapi.actions.base import Action
from vbackup.qapi.actions.members import optional


class NewImageMode(Enum):
    """Whether QEMU makes the image."""

    EXISTING = "existing"  #: it is there and fits
    ABSOLUTE_PATHS = "absolute-paths"  #: QEMU makes it, with the absolute path of its backing file; the default


@dataclass(frozen=True)
class BlockdevSnapshot(Action):
    """blockdev-snapshot: the guest writes to ``overlay`` from now on, and ``node`` is its backing file.

    ``overlay`` is a node that was opened without a backing file ("backing": null).

    Errors: no such node, an overlay that is in use, has a backing file or cannot have one.
    """

    TYPE: ClassVar[str] = "blockdev-snapshot"
    SINCE: ClassVar[str] = "2.5"

    node: str
    overlay: str


@dataclass(frozen=True)
class BlockdevSnapshotInternalSync(Action):
    """blockdev-snapshot-internal-sync: a snapshot called ``name`` within the image of ``device``.

    Errors: no such device or root node, an empty or taken name, a format without internal snapshots, a
    read-only image.
    """

    TYPE: ClassVar[str] = "blockdev-snapshot-internal-sync"
    SINCE: ClassVar[str] = "1.7"

    device: str
    name: str


@dataclass(frozen=True)
class BlockdevSnapshotSync(Action):
    """blockdev-snapshot-sync: the guest writes to a new image from now on.

    The disk is named by ``device`` or by ``node_name``; with the latter the overlay must get a
    ``snapshot_node_name``. QEMU makes ``snapshot_file`` in ``format`` (default qcow2) unless ``mode`` is existing;
    the file stays behind if the transaction fails.

    Errors: no such device or node, none named, an odd or taken node name, a file that cannot be made or
    opened, a format without backing files.
    """

    TYPE: ClassVar[str] = "blockdev-snapshot-sync"
    SINCE: ClassVar[str] = "1.1"

    snapshot_file: str  #: path
    device: str | None = None
    node_name: str | None = optional(since="2.0")
    snapshot_node_name: str | None = optional(since="2.0")
    format: str | None = None
    mode: NewImageMode | None = None
