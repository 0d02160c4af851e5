"""Decide how the images of backups are merged: what a removed backup holds goes to those that depend on it.

Does no I/O. For each disk, a backup that stays takes over the images below its own that are removed, several at once if
they follow each other: the layers of a ``DiskMerge``. Its new image is always made from the lowest of them, into which
the others are committed: a clone of it that shares its data (reflink), a copy, or that image itself (in place). So its
backing file is already the right one, and what is compressed stays so.

vbackup.images.merge makes the images, vbackup.repository.merge_stage publishes them, vbackup.operations.consolidation
does both in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from vbackup.errors import NoSpaceError, StorageError
from vbackup.layers import ChainState
from vbackup.model import Backup, BlocksRecord, DiskImage, Level
from vbackup.repository.history import History, Link, image_of

#: What an image takes besides the blocks that it gets: new tables, and what the filesystem needs for it.
_MARGIN_BYTES = 1024 * 1024


class Way(Enum):
    """How the new image of a backup is made."""

    AUTO = "auto"  #: only in a request: for each image the cheapest that is possible
    REFLINK = "reflink"  #: a clone of the lowest image, which shares its data; costs what is committed into it
    IN_PLACE = "in-place"  #: the lowest image itself, if no other backup needs it; costs what is committed into it
    COPY = "copy"  #: a copy of the lowest image
    NEVER = "never"  #: only in a request: a backup on which others depend stays


@dataclass(frozen=True)
class Place:
    """What the filesystem of the repository offers (vbackup.repository.filesystem)."""

    reflinks: bool
    links: bool
    free_bytes: int
    linked: frozenset[tuple[str, str]] = frozenset()  #: (backup id, dev) of the images that have a further name


@dataclass(frozen=True)
class DiskMerge:
    """One disk of a backup that takes over the images of others."""

    dev: str
    layers: tuple[str, ...]  #: ids of the backups whose images become one: the heir's first, the lowest last
    base: str | None  #: the backup on which the new image depends; None: on none, it is a full
    way: Way
    needs_bytes: int  #: room for the new image

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "dev": self.dev,
            "layers": list(self.layers),
            "base": self.base,
            "way": self.way.value,
            "needs_bytes": self.needs_bytes,
        }


@dataclass(frozen=True)
class Merge:
    """A backup that takes over the images of others: all its disks at one instant."""

    heir: str
    disks: tuple[DiskMerge, ...]

    @property
    def is_in_place(self) -> bool:
        """True if a published image is written."""
        return any(disk.way is Way.IN_PLACE for disk in self.disks)

    @property
    def needs_bytes(self) -> int:
        """Room for its new images."""
        return sum(disk.needs_bytes for disk in self.disks)


@dataclass(frozen=True)
class Plan:
    """What is done, in this order: merges, then removals."""

    domain_uuid: str
    removed: tuple[str, ...]  #: the newest first: so no backup lacks one that it depends on at any instant
    kept: Mapping[str, str]  #: why backups that were to be removed stay, by id
    merges: tuple[Merge, ...]
    free_bytes: int

    @property
    def needs_bytes(self) -> int:
        """Room that is needed until what is removed has gone."""
        return sum(merge.needs_bytes for merge in self.merges)

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "removed": list(self.removed),
            "kept": [{"id": backup_id, "reason": reason} for backup_id, reason in self.kept.items()],
            "merges": [{"id": merge.heir, "disks": [disk.document() for disk in merge.disks]} for merge in self.merges],
            "needs_bytes": self.needs_bytes,
            "free_bytes": self.free_bytes,
        }


def removal(
    history: History, remove: Collection[str], *, way: Way, place: Place, kept: Mapping[str, str] | None = None
) -> Plan:
    """Plan the removal of backups; what others need of them goes to those.

    ``kept``: backups among them that stay, and why. Raises ChainError if one is unknown, or if the chain of one that
    stays is broken; NoSpaceError if there is no room, StorageError if the way that was asked for is not possible.
    """
    given = {**(kept or {})}
    known = {backup.id: backup for backup in (*history.backups, *history.merging)}
    for backup_id in remove:
        if backup_id not in known:
            history.get(backup_id)
    removed = set(remove) - given.keys()
    for backup_id in list(given):
        for below in _chains(history, known[backup_id]):
            if below in removed:
                given[below] = f"{backup_id} depends on it"
    removed -= given.keys()
    if way is Way.NEVER:
        given.update(_needed(history, removed))
        removed -= given.keys()
    merges = [
        (backup, chains)
        for backup in history.backups
        if backup.id not in removed and (chains := _taken_over(history, backup, removed))
    ]
    order = sorted(removed, key=lambda backup_id: known[backup_id].sequence, reverse=True)
    plan = _Planner(history, way, place, removed).plan(merges)
    uuid = next(iter(known.values())).domain_uuid if known else ""
    return Plan(uuid, tuple(order), given, plan, place.free_bytes)


def independence(history: History, wanted: Collection[tuple[str, str]], *, way: Way, place: Place) -> Plan:
    """Plan to make images, given as (backup id, dev), independent of all others, which stay: fulls without the VM.

    Raises ChainError if the chain of one is broken, NoSpaceError, StorageError.
    """
    merges = []
    for backup in reversed(history.backups):
        chains = {
            image.dev: history.links(backup.id, image.dev)
            for image in backup.disks
            if (backup.id, image.dev) in wanted and image.base is not None
        }
        if chains:
            merges.append((backup, chains))
    uuid = history.backups[0].domain_uuid if history.backups else ""
    planned = _Planner(history, Way.AUTO if way is Way.NEVER else way, place, frozenset()).plan(merges)
    return Plan(uuid, (), {}, planned, place.free_bytes)


def too_long(history: History, limit: int) -> list[tuple[str, str]]:
    """Return the images, as (backup id, dev), that have to be fulls so that no chain has more than ``limit`` images."""
    length: dict[tuple[str, str], int] = {}
    found = []
    for backup in history.backups:
        for image in backup.disks:
            below = length.get((image.base, image.dev), 0) if image.base is not None else 0
            if below >= limit:
                found.append((backup.id, image.dev))
                below = 0
            length[backup.id, image.dev] = below + 1
    return found


def merged_backup(
    backup: Backup, images: Mapping[str, tuple[BlocksRecord, int]], disks: Iterable[DiskMerge], history: History
) -> Backup:
    """Return the record of a backup whose images have taken over others.

    ``images``: of each merged disk what is recorded of its new image's content, and the size of its file in bytes.
    """
    merges = {disk.dev: disk for disk in disks}
    new = tuple(
        image
        if image.dev not in merges
        else _merged_image(
            image,
            merges[image.dev],
            *images[image.dev],
            checkpoint=_checkpoint(backup, image, merges[image.dev], history),
            full=_full(backup, merges[image.dev], history),
        )
        for image in backup.disks
    )
    bases = [base for base in (image.base for image in new) if base is not None]
    parent = max(bases, key=lambda base: _sequence(history, base)) if bases else None
    level = Level.FULL if parent is None and backup.level is not Level.COPY else backup.level
    return replace(backup, disks=new, parent=parent, level=level)


@dataclass(frozen=True)
class _Checkpoint:
    """From what the next backup of a disk can start at a merged image."""

    bitmap: str | None
    of: str | None  #: id of the backup that made it, if another did
    chain: ChainState | None


def _checkpoint(backup: Backup, image: DiskImage, merge: DiskMerge, history: History) -> _Checkpoint:
    """Return the checkpoint of an image that is merged.

    The domain has the bitmaps of the newest backup and of the last full (History.base_bitmaps). An image that becomes a
    full takes over that of the last full if it is merged with it: what has changed since then has all that has changed
    since this backup, so a differential can start here with it. With the name of a bitmap that the domain has not, the
    image would be taken for the last full, and the bitmap of the true one would go.
    """
    if merge.base is not None or history.newest(image.dev) in (None, backup):
        return _Checkpoint(image.bitmap, image.checkpoint, image.chain)
    full = history.present(backup.id, image.dev)[-1]
    of = full.image.checkpoint or full.backup.id
    last = history.last_full(image.dev)
    if (
        # A later full, but for another that has just taken over the same.
        (last is not None and last.sequence > full.backup.sequence and image_of(last, image.dev).checkpoint != of)
        # The end mark of its size is what shows whether the disk has been smaller.
        or full.image.virtual_size_bytes != image.virtual_size_bytes
        or history.distrust(full.backup.id, image.dev) is not None
        or full.image.bitmap is None
    ):
        return _Checkpoint(None, None, image.chain)
    return _Checkpoint(full.image.bitmap, of, full.image.chain)


def _full(backup: Backup, merge: DiskMerge, history: History) -> str | None:
    """Return the id of the backup that copied the whole disk, with which the image began; None if it is no full."""
    if merge.base is not None:
        return None
    lowest = history.present(backup.id, merge.dev)[-1]
    return lowest.image.full or lowest.image.checkpoint or lowest.backup.id


def _merged_image(
    image: DiskImage,
    merge: DiskMerge,
    blocks: BlocksRecord,
    size_bytes: int,
    *,
    checkpoint: _Checkpoint,
    full: str | None,
) -> DiskImage:
    others = ", ".join(merge.layers[1:])
    reason = f"merged with {others}" if merge.base is None else f"changes since {merge.base}, merged with {others}"
    return replace(
        image,
        base=merge.base,
        level=Level.FULL if merge.base is None else image.level,
        bitmap=checkpoint.bitmap,
        checkpoint=checkpoint.of,
        full=full,
        chain=checkpoint.chain,
        reason=reason,
        blocks=blocks,
        digest=None,
        file_size_bytes=size_bytes,
    )


def _sequence(history: History, backup_id: str) -> int:
    return next(
        (one.sequence for one in (*history.backups, *history.merging) if one.id == backup_id),
        0,
    )


def _taken_over(history: History, backup: Backup, removed: Collection[str]) -> dict[str, tuple[Link, ...]]:
    """Return, by dev, the image of this backup and those below it that are removed; nothing for other disks."""
    chains = {}
    for image in backup.disks:
        if image.base in removed:
            links = history.links(backup.id, image.dev)
            count = next((n for n, link in enumerate(links) if n and link.backup.id not in removed), len(links))
            chains[image.dev] = links[:count]
    return chains


def _chains(history: History, backup: Backup) -> set[str]:
    """Return the backups on which one depends."""
    return {link.backup.id for image in backup.disks for link in history.links(backup.id, image.dev)[1:]}


def _needed(history: History, removed: Collection[str]) -> dict[str, str]:
    """Return those of the backups on which others depend that stay, and which those are."""
    needed: dict[str, str] = {}
    for backup in sorted((*history.backups, *history.merging), key=lambda one: one.sequence, reverse=True):
        if backup.id in removed and backup.id not in needed:
            continue
        for image in backup.disks:
            if image.base in removed and image.base not in needed:
                assert image.base is not None
                needed[image.base] = f"{backup.id} depends on it"
    return needed


class _Planner:
    """Chooses the way for each image."""

    def __init__(self, history: History, way: Way, place: Place, removed: Collection[str]) -> None:
        self._history = history
        self._way = way
        self._place = place
        self._removed = removed

    def plan(self, merges: Sequence[tuple[Backup, Mapping[str, Sequence[Link]]]]) -> tuple[Merge, ...]:
        """Return the merges in order. ``merges``: for each heir its chains by dev.

        Raises NoSpaceError, StorageError.
        """
        chosen = self._chosen(merges, self._way)
        needed = sum(merge.needs_bytes for merge in chosen)
        if needed > self._place.free_bytes:
            raise self._no_room(merges, needed)
        return chosen

    def _chosen(self, merges: Sequence[tuple[Backup, Mapping[str, Sequence[Link]]]], way: Way) -> tuple[Merge, ...]:
        #: The heir that takes over an image itself is the last one: the others have had theirs of it by then.
        last = {
            (chain[-1].backup.id, dev): heir.sequence
            for heir, chains in sorted(merges, key=lambda merge: merge[0].sequence)
            for dev, chain in chains.items()
        }

        def of_disk(heir: Backup, dev: str, chain: Sequence[Link]) -> DiskMerge:
            is_last = last[chain[-1].backup.id, dev] == heir.sequence
            one = self._way_for(chain, way, is_last=is_last)
            sizes = [link.image.file_size_bytes for link in chain]
            needs = sum(sizes) if one is Way.COPY else sum(sizes[:-1])
            return DiskMerge(
                dev,
                tuple(link.backup.id for link in chain),
                chain[-1].image.base,
                one,
                needs + _MARGIN_BYTES,
            )

        made = [
            Merge(heir.id, tuple(of_disk(heir, dev, chain) for dev, chain in chains.items())) for heir, chains in merges
        ]
        return tuple(sorted(made, key=lambda merge: merge.is_in_place))

    def _way_for(self, chain: Sequence[Link], way: Way, *, is_last: bool) -> Way:
        if way is Way.COPY:
            return way
        if way in (Way.REFLINK, Way.AUTO) and self._place.reflinks:
            return Way.REFLINK
        if way is Way.REFLINK:
            raise StorageError(
                "The filesystem of the repository has no reflinks (XFS and btrfs have), so that a clone would share the"
                " data of an image; use --consolidate auto, in-place or copy. Nothing was changed."
            )
        reason = self._why_not_in_place(chain, is_last=is_last)
        if reason is None:
            return Way.IN_PLACE
        if way is Way.IN_PLACE and is_last:
            raise StorageError(
                f"Disk {chain[0].image.dev}: {chain[0].backup.id} cannot take over the image of"
                f" {chain[-1].backup.id} in place: {reason}; use --consolidate auto or copy. Nothing was changed."
            )
        return Way.COPY  # of several heirs, only one can have the image itself

    def _why_not_in_place(self, chain: Sequence[Link], *, is_last: bool) -> str | None:
        if chain[-1].backup.id not in self._removed:
            return "that backup stays"
        if not is_last:
            return "another backup takes it over"
        if not self._place.links:
            return "the filesystem has no hard links"
        return self._why_not_written(chain)

    def _why_not_written(self, chain: Sequence[Link]) -> str | None:
        if (chain[-1].backup.id, chain[-1].image.dev) in self._place.linked:
            return "the image has another name too (a hard link), and a copy of the repository would be written"
        if len({link.image.virtual_size_bytes for link in chain}) > 1:
            return "the disk has grown between them"
        if any(link.image.blocks is None for link in chain):
            return "an image has no block list yet ('vbackup verify' makes it)"
        return None

    def _no_room(self, merges: Sequence[tuple[Backup, Mapping[str, Sequence[Link]]]], needed: int) -> NoSpaceError:
        fitting = []
        for way in (Way.REFLINK, Way.IN_PLACE):
            if way is self._way:
                continue
            try:
                other = sum(merge.needs_bytes for merge in self._chosen(merges, way))
            except StorageError:
                continue
            if other <= self._place.free_bytes:
                fitting.append(f"--consolidate {way.value} fits (it needs {_mib(other)})")
        remedy = "; ".join(fitting) or (
            "no way fits: free some space, remove fewer backups at a time, or use --consolidate never, which removes"
            " only those on which no other depends"
        )
        return NoSpaceError(
            f"No room to merge: the new images need up to {_mib(needed)}, and {_mib(self._place.free_bytes)} are free."
            f" Nothing was changed; {remedy}."
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
