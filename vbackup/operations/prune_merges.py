"""What a prune asks of the consolidation: to give the data of removed backups to those that depend on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from vbackup.model import DiskImage
from vbackup.operations import consolidation
from vbackup.report import Reporter
from vbackup.repository import immutability, merging
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import History
from vbackup.repository.merging import Plan, Way
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


class Merge(Protocol):
    """What is to be done so that removed backups on which others depend can go."""

    @property
    def heirs(self) -> Mapping[str, Sequence[str]]:
        """The ids of the backups that get data, by the id of the one that it comes from."""

    @property
    def kept(self) -> Mapping[str, str]:
        """Why backups that were to be removed stay, by id."""

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to do."""

    @property
    def extra_bytes(self) -> int:
        """The room that further copies of the same data take, in bytes: if several backups get a copy each."""

    def sentences(self) -> list[str]:
        """Return what is done and how, for people."""

    def document(self) -> dict[str, Any]:
        """Return the same as a JSON object."""


@dataclass(frozen=True)
class Carried:
    """What became of a plan."""

    merge: Merge  #: what was done of it
    kept: Mapping[str, str]  #: why backups that were to be removed stay, by id
    busy: Mapping[str, str] = field(default_factory=dict)  #: why others did not become fulls, by id


class Consolidator(Protocol):
    """Gives the data of removed backups to those that depend on them."""

    def plan(self, catalogue: Catalogue, remove: Collection[str]) -> Merge:
        """Return what has to be done. Raises NoSpaceError, and whatever says that it cannot be done."""

    def carry_out(self, merge: Merge) -> Carried:
        """Do it, and remove the backups; return what was done, and what not, because backups are in use."""


@dataclass(frozen=True)
class PlannedMerge:
    """A plan of the consolidation, and the images that become fulls after that, because their chains are too long."""

    plan: Plan
    directory: Path  #: of the domain
    shortened: tuple[tuple[str, str], ...] = ()  #: (backup id, dev)
    max_chain: int | None = None

    @property
    def heirs(self) -> Mapping[str, Sequence[str]]:
        """The ids of the backups that get data, by the id of the one that it comes from."""
        found: dict[str, list[str]] = {}
        for merge in self.plan.merges:
            for below in dict.fromkeys(one for disk in merge.disks for one in disk.layers[1:]):
                found.setdefault(below, []).append(merge.heir)
        return found

    @property
    def kept(self) -> Mapping[str, str]:
        """Why backups that were to be removed stay, by id."""
        return self.plan.kept

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to do."""
        return not self.plan.merges and not self.plan.removed and not self.shortened

    @property
    def extra_bytes(self) -> int:
        """The room that further copies of the same data take, in bytes: if several backups get a copy each."""
        given: set[tuple[str, str]] = set()
        extra = 0
        for merge in self.plan.merges:
            for disk in merge.disks:
                for backup_id in disk.layers[1:]:
                    is_shared = disk.way is Way.REFLINK and backup_id == disk.layers[-1]
                    if (backup_id, disk.dev) in given and not is_shared:
                        extra += _file_bytes(self.directory / backup_id / f"{disk.dev}.qcow2")
                    given.add((backup_id, disk.dev))
        return extra

    def sentences(self) -> list[str]:
        """Return what is done and how, for people."""
        sentences = []
        for merge in self.plan.merges:
            for disk in merge.disks:
                into = f"{disk.layers[-1]} on, {_WAYS[disk.way]}"
                sentences.append(f"Disk {disk.dev}: {merge.heir} takes over what it needs from {into}.")
        for backup_id, dev in self.shortened:
            sentences.append(
                f"Disk {dev}: {backup_id} becomes a full, so that no chain has more than {self.max_chain} images."
            )
        return sentences

    def document(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        shortened = [{"id": backup_id, "dev": dev} for backup_id, dev in self.shortened]
        return {**self.plan.document(), "shortened": shortened}


#: How an image is made, for people.
_WAYS = {
    Way.REFLINK: "by reflink (a clone that shares its data)",
    Way.IN_PLACE: "in place",
    Way.COPY: "by a copy",
}


@dataclass(frozen=True)
class Consolidation:
    """The consolidation with the options of ``vbackup prune``."""

    repository: Repository
    way: Way
    reporter: Reporter
    stop: Stop
    max_chain: int | None = None

    def plan(self, catalogue: Catalogue, remove: Collection[str]) -> PlannedMerge:
        """Return what has to be done. Raises as vbackup.operations.consolidation."""
        plan = consolidation.plan(catalogue, remove, repository=self.repository, way=self.way)
        directory = self.repository.path / catalogue.uuid
        if self.max_chain is None:
            return PlannedMerge(plan, directory)
        history = _whole(catalogue).history
        after = _afterwards(history, plan.removed)
        too_long = [
            (backup_id, dev)
            for backup_id, dev in merging.too_long(after, self.max_chain)
            if immutability.reason(directory / backup_id) is None
        ]
        if too_long:
            # Only whether it can be done: what is removed must not be gone when that turns out.
            place = consolidation.place(directory)
            place = replace(place, free_bytes=max(0, plan.free_bytes - plan.needs_bytes + _freed_bytes(plan, history)))
            merging.independence(after, too_long, way=self.way, place=place)
        return PlannedMerge(plan, directory, tuple(too_long), self.max_chain)

    def carry_out(self, merge: Merge) -> Carried:
        """Do it, and remove the backups; return what was done, and what not, because backups are in use."""
        assert isinstance(merge, PlannedMerge)
        plan = merge.plan
        done = consolidation.carry_out(plan, repository=self.repository, reporter=self.reporter, stop=self.stop)
        merged = replace(plan, merges=tuple(one for one in plan.merges if one.heir in done.merged))
        if self.max_chain is None or not merge.shortened:
            return Carried(replace(merge, plan=merged), done.kept)
        catalogue = _whole(self.repository.catalogue(plan.domain_uuid))
        shorter = consolidation.plan_length(catalogue, self.max_chain, repository=self.repository, way=self.way)
        then = consolidation.carry_out(shorter, repository=self.repository, reporter=self.reporter, stop=self.stop)
        fulls = [(one.heir, disk.dev) for one in shorter.merges if one.heir in then.merged for disk in one.disks]
        return Carried(replace(merge, plan=merged, shortened=tuple(sorted(fulls))), done.kept, then.busy)


def _whole(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue without broken backups, which cannot become fulls."""
    return replace(catalogue, history=catalogue.history.without({one.id for one in catalogue.incomplete}))


def _afterwards(history: History, removed: Collection[str]) -> History:
    """Return the backups that are there when these have given their data to others."""
    by_id = {backup.id: backup for backup in history.backups}

    def image_after(image: DiskImage) -> DiskImage:
        base, size_bytes = image.base, image.file_size_bytes
        while base is not None and base in removed:
            below = by_id[base].image(image.dev)
            size_bytes += below.file_size_bytes if below is not None else 0
            base = below.base if below is not None else None
        return replace(image, base=base, file_size_bytes=size_bytes)

    left = (backup for backup in history.backups if backup.id not in removed)
    return History([replace(backup, disks=tuple(map(image_after, backup.disks))) for backup in left])


def _freed_bytes(plan: Plan, history: History) -> int:
    """Return the room that is free again after the merges: the old images, unless the new ones are made of them."""
    sizes = {(one.id, image.dev): image.file_size_bytes for one in history.backups for image in one.disks}
    disks = [(merge.heir, disk) for merge in plan.merges for disk in merge.disks]
    gone = {key for key in sizes if key[0] in plan.removed} | {(heir, disk.dev) for heir, disk in disks}
    gone -= {(disk.layers[-1], disk.dev) for _, disk in disks if disk.way is not Way.COPY}
    return sum(sizes.get(key, 0) for key in gone)


def _file_bytes(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
