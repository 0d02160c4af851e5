"""The actions that take a snapshot (QAPI BlockdevSnapshot, BlockdevSnapshotInternal, BlockdevSnapshotSync)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from vbackup.qapi.actions.base import Action
from vbackup.qapi.actions.members import optional


class NewImageMode(Enum):
    """Whether QEMU creates the image."""

    EXISTING = "existing"  #: no, it exists and fits
    ABSOLUTE_PATHS = "absolute-paths"  #: yes, with the absolute path of its backing file; the default


@dataclass(frozen=True)
class BlockdevSnapshot(Action):
    """blockdev-snapshot: make ``node`` the backing file of ``overlay``, which the guest writes to from now on.

    ``overlay`` is a node that was opened without a backing file ("backing": null).

    Errors: unknown node; an overlay that is in use, has a backing file or cannot have one.
    """

    TYPE: ClassVar[str] = "blockdev-snapshot"
    SINCE: ClassVar[str] = "2.5"

    node: str
    overlay: str


@dataclass(frozen=True)
class BlockdevSnapshotInternalSync(Action):
    """blockdev-snapshot-internal-sync: create the snapshot ``name`` inside the image of ``device``.

    Errors: unknown device or root node; empty or used name; format without internal snapshots; read-only image.
    """

    TYPE: ClassVar[str] = "blockdev-snapshot-internal-sync"
    SINCE: ClassVar[str] = "1.7"

    device: str
    name: str


@dataclass(frozen=True)
class BlockdevSnapshotSync(Action):
    """blockdev-snapshot-sync: put a new image on top, which the guest writes to from now on.

    ``device`` or ``node_name`` names the disk; with ``node_name``, the overlay needs a ``snapshot_node_name``. QEMU
    creates ``snapshot_file`` in ``format`` (default qcow2) unless ``mode`` is existing; if the transaction fails, the
    file remains.

    Errors: unknown device or node, or neither named; malformed or used node name; file that cannot be created or
    opened; format without backing files.
    """

    TYPE: ClassVar[str] = "blockdev-snapshot-sync"
    SINCE: ClassVar[str] = "1.1"

    snapshot_file: str  #: path
    device: str | None = None
    node_name: str | None = optional(since="2.0")
    snapshot_node_name: str | None = optional(since="2.0")
    format: str | None = None
    mode: NewImageMode | None = None
