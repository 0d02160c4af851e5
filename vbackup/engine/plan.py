"""A whole backup as data: what each disk is copied to, from which base, in one transaction.

The plan is complete before anything is changed: vbackup.engine.survey gathers what it is made from,
vbackup.engine.disk_plan is its part for one disk, vbackup.operations.backup carries it out, ``--dry-run`` shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from vbackup import names
from vbackup.engine import allocation, endmark
from vbackup.engine.allocation import Allocation
from vbackup.engine.base import Choice, level_of, parent_of
from vbackup.engine.disk_plan import DiskPlan, FleecingPlan
from vbackup.engine.endmark import NewMark
from vbackup.errors import DiskError, UnsuitableError
from vbackup.images import tuning
from vbackup.model import (
    EXCLUDED,
    QEMUS_OWN,
    Backup,
    Compression,
    Consistency,
    Disk,
    DiskNode,
    Domain,
    ImageOptions,
    LeftOut,
    Level,
    NodeOptions,
)
from vbackup.names import Naming
from vbackup.qapi.actions import OnCbwError
from vbackup.repository.history import History

#: QEMU has 64 threads for the requests to all its files, and one job can keep all of them busy: if a slow repository
#: blocks them, the guest's requests have to wait.
MAX_FLEECING_WORKERS = 16


@dataclass(frozen=True)
class FleecingAbilities:
    """What this QEMU can do for fleecing."""

    spares_guest: bool  #: can fail the backup instead of the guest's write by itself (on-cbw-error)
    tells_zeros: bool  #: the block status of a view is right where it says that a range reads as zeros


@dataclass(frozen=True)
class BackupPlan:
    """All disks of one domain at one moment."""

    id: str
    sequence: int
    planned_at: datetime
    level: Level
    parent: str | None
    history: History  #: of the domain before this backup
    domain: Domain
    left_out: tuple[LeftOut, ...]
    disks: tuple[DiskPlan, ...]
    compression: Compression
    speed_bytes_s: int | None
    node_options: NodeOptions = QEMUS_OWN
    is_served: bool = False  #: QEMU writes the images by NBD, and the server compresses (vbackup.images.target_server)

    @property
    def is_compressed(self) -> bool:
        """True if the images are compressed."""
        return self.compression is not Compression.NONE

    @property
    def _jobs_compress(self) -> bool:
        return self.is_compressed and not self.is_served

    @property
    def image_options(self) -> ImageOptions:
        """Options for creating the images."""
        return tuning.image_options(self.compression)

    @property
    def has_fleecing_area(self) -> bool:
        """True if the copies are started by a second transaction (``copies``)."""
        return any(disk.fleecing is not None for disk in self.disks)

    def copies(self) -> list[dict[str, Any]]:
        """Return the actions to send when the views are open; empty without a fleecing area."""
        return [
            action.document()
            for disk in self.disks
            if disk.fleecing is not None
            for action in disk.copy_actions(speed_bytes_s=self.speed_bytes_s, compress=self._jobs_compress)
        ]

    @property
    def scratch_sizes(self) -> Mapping[str, int]:
        """Sizes in bytes of the nodes, by name, that new end marks are merged from (vbackup.engine.scratch)."""
        return {
            disk.new_mark.scratch.node_name: disk.node.top.virtual_size_bytes
            for disk in self.disks
            if disk.new_mark is not None
        }

    def transaction(self) -> list[dict[str, Any]]:
        """Return the actions as JSON-ready data."""
        return [
            action.document()
            for disk in self.disks
            for action in disk.actions(speed_bytes_s=self.speed_bytes_s, compress=self._jobs_compress)
        ]

    def draft(self, *, versions: Mapping[str, str], files: Mapping[str, str]) -> Backup:
        """Return the backup as it will be committed, without what is known only at its end."""
        return Backup(
            id=self.id,
            sequence=self.sequence,
            level=self.level,
            parent=self.parent,
            time=self.planned_at,
            domain_name=self.domain.name,
            domain_uuid=self.domain.uuid,
            disks=tuple(disk.draft() for disk in self.disks),
            left_out=self.left_out,
            consistency=Consistency.CRASH,
            frozen_ms=0,
            duration_s=0.0,
            files=files,
            versions=versions,
        )


@dataclass(frozen=True)
class Selection:
    """Which disks of a domain are backed up, and which are not, nor anything else that it has on its host."""

    domain: Domain
    disks: tuple[Disk, ...]
    left_out: tuple[LeftOut, ...]


def select(domain: Domain, wanted: Sequence[str], excluded: Sequence[str]) -> Selection:
    """Return the disks to back up and those left out, with the user's own choice.

    Raises DiskError for a name that is no disk of the domain or a disk that cannot be backed up, UnsuitableError if no
    disk is left.
    """
    known = {disk.dev for disk in domain.disks}
    unable = {left.dev: left.reason for left in domain.left_out}
    for dev in (*wanted, *excluded):
        if dev in unable and dev in wanted:
            raise DiskError(dev, f"it cannot be backed up: {unable[dev]}.")
        if dev not in known and dev not in unable:
            has = ", ".join(disk.dev for disk in domain.disks) or "no disk that can be backed up"
            raise DiskError(dev, f"domain {domain.name} has no such disk; it has {has}.")
    left_out = list(domain.left_out)
    disks = []
    for disk in domain.disks:
        if disk.dev in excluded or (wanted and disk.dev not in wanted):
            left_out.append(LeftOut(disk.dev, EXCLUDED))
        else:
            disks.append(disk)
    if not disks:
        reasons = "; ".join(f"{left.dev}: {left.reason}" for left in left_out) or "it has no disk"
        raise UnsuitableError(f"Domain {domain.name} has nothing to back up ({reasons}).")
    return Selection(domain, tuple(disks), (*left_out, *domain.host_state))


@dataclass(frozen=True)
class Identity:
    """What the backup and everything it has in QEMU is named by."""

    naming: Naming
    now: datetime
    token: str  #: a new one (names.new_token)
    taken_ids: Collection[str] = ()  #: of the backups that exist


@dataclass(frozen=True)
class Wishes:
    """What the user asked for, as this QEMU can do it."""

    level: Level
    compression: Compression = Compression.NONE
    speed_bytes_s: int | None = None  #: of each disk's job
    fleecing: FleecingAbilities | None = None  #: the guest waits for a fleecing area, not for the targets
    node_options: NodeOptions = QEMUS_OWN
    is_served: bool = False  #: QEMU writes the images by NBD
    allow_reflink: bool = False  #: images may share data with the disks; they do not if it is compressed or a view's
    full_every_s: float | None = None  #: how old the newest full may be before level auto is a full


def make(
    selection: Selection,
    choices: Sequence[tuple[DiskNode, Choice]],
    *,
    history: History,
    identity: Identity,
    wishes: Wishes,
) -> BackupPlan:
    """Name everything and put the plan together; ``choices`` has the base of each selected disk."""
    level = level_of(wishes.level, [choice for _, choice in choices])
    backup_id = free_id(identity.now, level, identity.taken_ids)
    sizes = sorted({node.top.virtual_size_bytes for node, _ in choices})
    disks = []
    for index, (node, choice) in enumerate(choices):
        disk = _disk(node, choice, backup_id=backup_id, level=level, identity=identity)
        if wishes.fleecing is not None:
            fleecing = _fleecing(
                wishes.fleecing,
                identity.naming,
                backup_id=backup_id,
                dev=node.disk.dev,
                index=index,
                disks=len(choices),
            )
            disk = replace(disk, fleecing=fleecing)
        elif wishes.compression is Compression.NONE:
            disk = replace(disk, reflinks=wishes.allow_reflink)
        if choice.base is None:
            disk = replace(disk, allocation=_allocation(disk, identity.naming, backup_id=backup_id, index=index))
        if disk.bitmap is not None:
            disk = replace(disk, new_mark=_new_mark(node, choice, history=history, naming=identity.naming, sizes=sizes))
        disks.append(disk)
    return BackupPlan(
        id=backup_id,
        sequence=history.next_sequence,
        planned_at=identity.now,
        level=level,
        parent=parent_of([choice for _, choice in choices]),
        history=history,
        domain=selection.domain,
        left_out=selection.left_out,
        disks=tuple(disks),
        compression=wishes.compression,
        speed_bytes_s=wishes.speed_bytes_s,
        node_options=wishes.node_options,
        is_served=wishes.is_served,
    )


def _disk(node: DiskNode, choice: Choice, *, backup_id: str, level: Level, identity: Identity) -> DiskPlan:
    naming, dev = identity.naming, node.disk.dev
    makes_checkpoint = _makes_checkpoint(node, level)
    return DiskPlan(
        node=node,
        choice=choice,
        job_id=naming.job(backup_id, dev),
        target_node=naming.target_node(dev),
        bitmap=naming.bitmap(backup_id, dev, identity.token) if makes_checkpoint else None,
        working_name=naming.working_bitmap(backup_id, dev),
    )


def _allocation(disk: DiskPlan, naming: Naming, *, backup_id: str, index: int) -> Allocation:
    return allocation.of_full(
        disk.node,
        backup_id=backup_id,
        naming=naming,
        index=index,
        has_view=disk.fleecing is not None,
        tells_zeros=disk.fleecing is None or disk.fleecing.tells_zeros,
    )


def _new_mark(
    node: DiskNode, choice: Choice, *, history: History, naming: Naming, sizes: Sequence[int]
) -> NewMark | None:
    """Disks of the same size share a scratch node; ``sizes`` lists all sizes."""
    size_bytes = node.top.virtual_size_bytes
    return endmark.new_mark(
        node,
        naming=naming,
        scratch_node=naming.scratch_node(sizes.index(size_bytes)),
        shrank=history.largest_base_bytes(node.disk.dev) > size_bytes,
        trusted=[bitmap.bitmap for bitmap in choice.bitmaps],
    )


def _fleecing(
    abilities: FleecingAbilities, naming: Naming, *, backup_id: str, dev: str, index: int, disks: int
) -> FleecingPlan:
    """Return the fleecing of one of ``disks`` disks.

    on-cbw-error=break-snapshot is safe only because the copy reads the view, which then fails. A job that reads the
    disk itself would succeed with the guest's new data in its copy (seen on QEMU 11.1).
    """
    return FleecingPlan(
        job_id=naming.fleecing_job(backup_id, dev),
        node=naming.fleecing_node(index),
        filter_node=naming.fleecing_filter(index),
        view=naming.fleecing_view(index),
        on_cbw_error=OnCbwError.BREAK_SNAPSHOT if abilities.spares_guest else None,
        tells_zeros=abilities.tells_zeros,
        max_workers=max(1, MAX_FLEECING_WORKERS // disks),
    )


def _makes_checkpoint(node: DiskNode, level: Level) -> bool:
    """Return True if a later backup of the disk can start from this one: not from a copy, nor without a bitmap."""
    return level is not Level.COPY and node.bears_checkpoints


def free_id(now: datetime, level: Level, taken: Collection[str]) -> str:
    """Return an unused id: the next free second, if another backup has this one or the clock stepped back."""
    stamps = {names.stamp_of(backup_id) for backup_id in taken}
    while names.stamp(now) in stamps:
        now += timedelta(seconds=1)
    return names.backup_id(now, level)
