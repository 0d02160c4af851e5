"""Decide which points go to a target, and in which form the image of each disk does. Does no I/O.

For each disk the nearest backup of its chain that the target has decides. If that is the image's own base, the image
goes as it is. If backups in between are not there, their images are made one with it, on top of that base. If there is
none, the whole chain becomes one full image.

Points are told by id and by what their manifests say, never by their files: a merge in the repository gives a backup
new files, but not another content. So nothing that is there goes again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from vbackup.copies.point import Point, origin_of
from vbackup.errors import ChainError
from vbackup.model import Backup, DiskImage
from vbackup.repository.history import History, Link


class Form(Enum):
    """What an image at the target is made of."""

    AS_IT_IS = "as-it-is"  #: the image of the backup
    JOINED = "joined"  #: it and those below it that the target does not have, on a base that it has
    FULL = "full"  #: all of the chain


@dataclass(frozen=True)
class DiskCopy:
    """How the image of a disk goes to the target."""

    dev: str
    base: str | None  #: backup at the target on which it will depend
    layers: tuple[Link, ...]  #: what it is made of, the newest first

    @property
    def form(self) -> Form:
        """What it is made of, in a word."""
        if len(self.layers) == 1:
            return Form.AS_IT_IS
        return Form.FULL if self.base is None else Form.JOINED

    @property
    def size_bytes(self) -> int:
        """The size of the image at most: that of the images that it is made of."""
        return sum(link.image.file_size_bytes for link in self.layers)


@dataclass(frozen=True)
class PointCopy:
    """A point that goes to the target."""

    backup: Backup
    disks: tuple[DiskCopy, ...]

    @property
    def directories(self) -> frozenset[str]:
        """The ids of the backups whose images are read."""
        return frozenset(link.backup.id for disk in self.disks for link in disk.layers) | {self.backup.id}


@dataclass(frozen=True)
class Plan:
    """What goes to a target, of one domain."""

    copies: tuple[PointCopy, ...]  #: oldest first
    there: tuple[str, ...]  #: ids of those asked for that the target has
    passed: tuple[str, ...]  #: ids of those older than the newest there: they were removed there, or left out
    skipped: Mapping[str, str]  #: why others cannot be copied, by id


def plan(
    history: History,
    there: Mapping[str, Point],
    *,
    unknown: frozenset[str] = frozenset(),
    since: datetime | None = None,
    full_every: int | None = None,
) -> Plan:
    """Return what goes to the target.

    ``there``: the points at the target by id; ``unknown``: ids of further points there, of which nothing is known, so
    that nothing can be based on them. ``since``: all points made then or later; by default, those that are newer than
    the newest at the target, since older ones were removed there. ``full_every``: the longest chain at the target.

    Raises ChainError if the target has another backup under an id.
    """
    for backup in history.backups:
        if backup.id in there:
            _refuse_other(backup, there[backup.id])
    newest = max(
        (
            *(point.backup.sequence for point in there.values()),
            *(backup.sequence for backup in history.backups if backup.id in unknown),
        ),
        default=-1,
    )
    known = _Known(there)
    copies: list[PointCopy] = []
    present, passed, skipped = [], [], {}
    for backup in history.backups:
        if backup.id in there or backup.id in unknown:
            present.append(backup.id)
        elif since is not None and backup.time < since:
            continue
        elif since is None and backup.sequence < newest:
            passed.append(backup.id)
        else:
            try:
                disks = tuple(_disk(history, backup, image, known, full_every) for image in backup.disks)
            except ChainError as err:
                skipped[backup.id] = str(err)
                continue
            copies.append(PointCopy(backup, disks))
            known.add(backup.id, disks)
    return Plan(tuple(copies), tuple(present), tuple(passed), skipped)


class _Known:
    """The chains at the target: the number of images of each, by backup and disk; only of those that are complete."""

    def __init__(self, there: Mapping[str, Point]) -> None:
        self._lengths: dict[tuple[str, str], int] = {}
        for point in sorted(there.values(), key=lambda each: each.backup.sequence):
            for image in point.backup.disks:
                self._add(point.backup.id, image.dev, image.base)

    def add(self, backup_id: str, disks: Sequence[DiskCopy]) -> None:
        for disk in disks:
            self._add(backup_id, disk.dev, disk.base)

    def _add(self, backup_id: str, dev: str, base: str | None) -> None:
        below = 0 if base is None else self._lengths.get((base, dev))
        if below is not None:
            self._lengths[backup_id, dev] = below + 1

    def length(self, backup_id: str, dev: str) -> int | None:
        """Return the number of images of a chain; None if the target has no complete one."""
        return self._lengths.get((backup_id, dev))


def _disk(history: History, backup: Backup, image: DiskImage, known: _Known, full_every: int | None) -> DiskCopy:
    links = history.links(backup.id, image.dev)
    for number, link in enumerate(links[1:], start=1):
        length = known.length(link.backup.id, image.dev)
        if length is not None:
            if full_every is not None and length >= full_every:
                break
            return DiskCopy(image.dev, link.backup.id, links[:number])
    return DiskCopy(image.dev, None, links)


def _refuse_other(backup: Backup, point: Point) -> None:
    """Raise ChainError if a point at the target is not this backup, whatever its files are by now."""
    reason = next(_differences(backup, point), None)
    if reason is not None:
        raise ChainError(
            f"The target has another backup under the id {backup.id}: {reason}. Nothing was copied; give another"
            " target, or find out which of the two was changed."
        )


def _differences(backup: Backup, point: Point) -> Iterator[str]:
    other = point.backup
    if (backup.time, backup.sequence) != (other.time, other.sequence):
        yield f"it is of {other.time} and number {other.sequence}, here of {backup.time} and {backup.sequence}"
    if dict(backup.digests) != dict(other.digests):
        yield "its domain.xml or another file of it has another digest"
    if [(each.dev, each.virtual_size_bytes) for each in backup.disks] != [
        (each.dev, each.virtual_size_bytes) for each in other.disks
    ]:
        yield "it has other disks"
    for image in backup.disks:
        origin, now = point.origins.get(image.dev), origin_of(image)
        # An image with another base is one of a merge, which changes no content.
        if (
            origin is not None
            and origin.base == now.base
            and None not in {origin.blocks, now.blocks}
            and origin.blocks != now.blocks
            and _algorithm(origin.blocks) == _algorithm(now.blocks)
        ):
            yield f"the content of disk {image.dev} was another one when it was copied"


def _algorithm(digest: str | None) -> str:
    return (digest or "").partition(":")[0]
