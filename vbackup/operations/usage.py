"""Find out where the room of a repository goes: ``vbackup usage``. Nothing is written, no image is read.

vbackup.repository.room measures files, vbackup.repository.merge_room compares the block lists of images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vbackup.domain.access import file_system_of
from vbackup.errors import ChainError
from vbackup.files import is_directory, storage_errors
from vbackup.model import Backup, DiskImage
from vbackup.repository import verify
from vbackup.repository.block_list import SUFFIX, BlockList
from vbackup.repository.history import Link
from vbackup.repository.merge_room import unneeded_blocks
from vbackup.repository.repository import PARTIAL, Repository
from vbackup.repository.room import REFLINK_FILE_SYSTEMS, Meter, Room, total
from vbackup.stop import Stop


@dataclass(frozen=True)
class UsageRequest:
    """What is measured."""

    domains: tuple[str, ...] | None = None  #: UUIDs; None: all, and what is beside them
    with_freed: bool = True  #: find out what pruning would free


@dataclass(frozen=True)
class BackupUsage:
    """The room of one backup."""

    id: str
    backup: Backup | None  #: None if its manifest cannot be read
    room: Room
    freed_bytes: int | None  #: what pruning it alone would free; None: not known


@dataclass(frozen=True)
class Leftover:
    """What is in a domain's directory and is no backup: a stage, running or not, or something else."""

    name: str
    room: Room
    is_running: bool


@dataclass(frozen=True)
class DomainUsage:
    """The room of the backups of one domain."""

    uuid: str
    name: str
    backups: tuple[BackupUsage, ...]
    leftovers: tuple[Leftover, ...]

    @property
    def room(self) -> Room:
        """Of the backups and leftovers together."""
        return total([*(one.room for one in self.backups), *(one.room for one in self.leftovers)])


@dataclass(frozen=True)
class FileSystem:
    """The filesystem of the repository."""

    kind: str | None  #: as in /proc/self/mountinfo; None if it is not known
    size_bytes: int
    free_bytes: int  #: for this user
    has_reflinks: bool


@dataclass(frozen=True)
class Usage:
    """Where the room goes."""

    file_system: FileSystem
    domains: tuple[DomainUsage, ...]
    others: tuple[Leftover, ...] = ()  #: directories of the repository that belong to no domain

    @property
    def room(self) -> Room:
        """Of all this together."""
        return total([*(one.room for one in self.domains), *(one.room for one in self.others)])


def run(request: UsageRequest, *, repository: Repository, stop: Stop) -> Usage:
    """Measure. Raises StorageError if the repository cannot be read, InterruptedBySignalError."""
    path = os.fspath(repository.path)
    kind = file_system_of(path)
    with storage_errors(f"read {path}"):
        found = os.statvfs(path)
    file_system = FileSystem(
        kind, found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, kind in REFLINK_FILE_SYSTEMS
    )
    meter = Meter(has_reflinks=file_system.has_reflinks)
    domains = []
    for uuid in repository.uuids() if request.domains is None else request.domains:
        stop.check()
        domains.append(_domain(repository, uuid, meter, with_freed=request.with_freed, stop=stop))
    others = _others(repository, meter) if request.domains is None else ()
    return Usage(file_system, tuple(domains), tuple(others))


def _domain(repository: Repository, uuid: str, meter: Meter, *, with_freed: bool, stop: Stop) -> DomainUsage:
    catalogue = repository.catalogue(uuid, with_chains=False)
    backups = catalogue.history.backups
    heirs = _heirs(backups)
    measured = []
    for backup in backups:
        stop.check()
        files = meter.files(repository.directory(uuid, backup.id))
        freed_bytes = _freed_bytes(repository, backup, files, heirs) if with_freed else None
        measured.append(BackupUsage(backup.id, backup, total(files.values()), freed_bytes))
    for broken in catalogue.unreadable:
        measured.append(BackupUsage(broken.id, None, meter.total(repository.directory(uuid, broken.id)), None))
    leftovers = tuple(_leftovers(repository, uuid, {one.id for one in measured}, meter))
    return DomainUsage(uuid, catalogue.names[-1], tuple(measured), leftovers)


def _leftovers(repository: Repository, uuid: str, backup_ids: set[str], meter: Meter) -> Iterator[Leftover]:
    running = {f"{backup_id}{PARTIAL}" for backup_id in repository.running(uuid)}
    for name in sorted(repository.taken_ids(uuid) - backup_ids):
        path = repository.path / uuid / name
        if is_directory(path):
            yield Leftover(name, meter.total(path), is_running=name in running)


def _others(repository: Repository, meter: Meter) -> Iterator[Leftover]:
    """Yield what is beside the directories of domains."""
    uuids = set(repository.uuids())
    with storage_errors(f"read {repository.path}"):
        paths = sorted(path for path in repository.path.iterdir() if path.name not in uuids)
    for path in paths:
        if is_directory(path):
            yield Leftover(path.name, meter.total(path), is_running=False)


def _heirs(backups: Sequence[Backup]) -> Mapping[tuple[str, str], list[Link]]:
    """Return the images that are directly above an image, by its backup's id and dev."""
    heirs: dict[tuple[str, str], list[Link]] = {}
    for backup in backups:
        for image in backup.disks:
            if image.base is not None:
                heirs.setdefault((image.base, image.dev), []).append(Link(backup, image))
    return heirs


def _freed_bytes(
    repository: Repository,
    backup: Backup,
    files: Mapping[str, Room],
    heirs: Mapping[tuple[str, str], list[Link]],
) -> int | None:
    """Return what is freed if the backup is removed and its heirs take over what they need of it.

    None if a block list that tells is missing or damaged.
    """
    freed_bytes = 0
    needed = {image.file for image in backup.disks if heirs.get((backup.id, image.dev))}
    for name, room in files.items():
        if name not in needed:
            freed_bytes += room.exclusive_bytes
    for image in backup.disks:
        if image.file in needed:
            share = _unneeded_share(repository, backup, image, heirs[backup.id, image.dev])
            if share is None:
                return None
            freed_bytes += round(files.get(image.file, Room()).exclusive_bytes * share)
    return freed_bytes


def _unneeded_share(repository: Repository, backup: Backup, image: DiskImage, heirs: Sequence[Link]) -> float | None:
    """Return which part of the data of an image, from 0 to 1, none of its heirs needs."""
    try:
        with ExitStack() as stack:
            own, *others = (
                stack.enter_context(BlockList.open(verify.image_path(repository, link).with_suffix(SUFFIX)))
                for link in (Link(backup, image), *heirs)
            )
            return unneeded_blocks(own, others) / own.data_blocks if own.data_blocks else 1.0
    except ChainError:
        return None
