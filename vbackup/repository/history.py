"""The backups of a domain in order, and the chain of each image, down to the full backup that it begins with.

Does no I/O: vbackup.repository.catalogue reads the manifests. vbackup.engine.base chooses the base of a new backup.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from vbackup import names
from vbackup.errors import ChainError
from vbackup.layers import ChainState
from vbackup.model import Backup, DiskImage, Level
from vbackup.names import BitmapName, EndMark


@dataclass(frozen=True)
class Link:
    """One image of a disk's chain."""

    backup: Backup
    image: DiskImage
    is_merging: bool = False  #: another image is being merged into it in place: only what those above hide may differ


@dataclass(frozen=True)
class RestoredDisk:
    """An image that a restore made, or a disk that it rolled back, with a new bitmap of the restored checkpoint.

    The name of the bitmap has a unique token (vbackup.names), which is recorded here alone: no other image has it,
    but copies of this one, and what libvirt lays over it.
    """

    dev: str
    backup: str  #: id of the backup that was restored
    bitmap: str
    size_bytes: int  #: of the disk
    after: int  #: sequence of the domain's newest backup at that time
    chain: ChainState  #: its layers
    after_id: str | None = None  #: of the backup with that sequence, which can come again if a manifest was lost
    is_in_place: bool = False  #: the domain's own disk was rolled back


@dataclass(frozen=True)
class Start:
    """A checkpoint that the next backup of a disk may start from, if the disk has its bitmap and that is trusted."""

    backup: Backup
    bitmap: str
    chain: ChainState | None  #: of the disk at the checkpoint; None if it was not recorded
    is_latest: bool  #: an image with this bitmap and an end mark is that of the checkpoint, or a copy of its file
    checkpoint: str  #: id of the backup that made the bitmap: ``backup``, or a removed full that was merged into it
    is_restored: bool = False


class History:
    """The backups of one domain in one repository, in the order of their commits, and which images are unusable.

    ``unusable`` has (backup id, dev) of the images that are missing or do not have the recorded size; ``distrusted``
    why no backup may start from a checkpoint. ``merging`` has the backups that are being removed by a merge in place
    (vbackup.repository.merge_journal): they are a part of the chains of others until that has ended, and nothing else.
    ``restored`` has the disks that were restored, the oldest first (vbackup.repository.restored). ``is_of_tracker``:
    they are checkpoints of pull sessions (vbackup.engine.session_history), which messages call by their name.
    ``source_option``: what ``vbackup list`` needs to show them, if they are not in the repository (" --from TARGET").
    """

    def __init__(
        self,
        backups: Sequence[Backup],
        unusable: Collection[tuple[str, str]] = (),
        distrusted: Mapping[tuple[str, str], str] | None = None,
        *,
        merging: Collection[str] = (),
        restored: Sequence[RestoredDisk] = (),
        is_of_tracker: bool = False,
        source_option: str = "",
    ) -> None:
        self.is_of_tracker = is_of_tracker
        self.source_option = source_option
        ordered = tuple(sorted(backups, key=lambda backup: backup.sequence))
        self.backups = tuple(backup for backup in ordered if backup.id not in merging)
        self.merging = tuple(backup for backup in ordered if backup.id in merging)
        self._by_id = {backup.id: backup for backup in ordered}
        self._unusable = frozenset(unusable)
        self._distrusted = distrusted or {}
        self._restored = tuple(restored)

    def get(self, backup_id: str) -> Backup:
        """Return the backup with that id. Raises ChainError if there is none."""
        if any(backup.id == backup_id for backup in self.merging):
            raise ChainError(
                f"Backup {backup_id} is being removed: its images are being merged with those of a later backup, so it"
                " cannot be restored any more. 'vbackup recover DOMAIN' finishes a merge that was interrupted."
            )
        try:
            return self._by_id[backup_id]
        except KeyError:
            raise ChainError(
                f"No backup {backup_id!r} of this domain; 'vbackup list DOMAIN{self.source_option}' lists them."
            ) from None

    def without(self, ids: Collection[str]) -> History:
        """Return the history as it is when these backups are gone."""
        merging = [backup.id for backup in self.merging]
        left = [backup for backup in self._by_id.values() if backup.id not in ids]
        return History(
            left,
            self._unusable,
            self._distrusted,
            merging=merging,
            restored=self._restored,
            source_option=self.source_option,
        )

    def distrust(self, backup_id: str, dev: str) -> str | None:
        """Return why no backup of a disk may start from that one, although its images can be restored; else None."""
        return self._distrusted.get((backup_id, dev))

    @property
    def next_sequence(self) -> int:
        """The sequence number of the backup that is committed next."""
        return max((backup.sequence for backup in self._by_id.values()), default=0) + 1

    def with_committed(self, backup: Backup) -> History:
        """Return the history with one more backup."""
        return History(
            [*self._by_id.values(), backup],
            self._unusable,
            self._distrusted,
            merging=[one.id for one in self.merging],
            restored=self._restored,
            source_option=self.source_option,
        )

    def newest(self, dev: str) -> Backup | None:
        """Return the newest backup that the next backup of this disk can start from."""
        return next(self._checkpoints(dev), None)

    def last_full(self, dev: str) -> Backup | None:
        """Return the newest full backup of this disk that the next one can start from: a differential's base."""
        return next((backup for backup in self._checkpoints(dev) if image_of(backup, dev).level is Level.FULL), None)

    def copied_whole(self, dev: str) -> tuple[str, datetime] | None:
        """Return the id and time of the newest backup in the chain that copied the whole disk; None if there is none.

        It may have been removed: a full that a merge made is as old as the one it began with.
        """
        for backup in reversed(self.backups):
            image = backup.image(dev)
            if image is None or image.level is not Level.FULL or backup.level is Level.COPY:
                continue
            began = image.full or image.checkpoint
            return (backup.id, backup.time) if began is None else (began, names.time_of(began))
        return None

    def starts(self, dev: str, *, of_full: bool, on_disk: Collection[str]) -> list[Start]:
        """Return the checkpoints that the next backup of a disk may start from, the likeliest first.

        ``on_disk`` has the names of the disk's bitmaps, ``of_full`` asks for fulls, as a differential does. A restored
        checkpoint is among them if the disk has its bitmap: before the newest backup if no backup was made since, else
        after it, because the restored image may have come into use later.

        Each of these makes end marks, so a mark vouches for the latest alone: with an overlay in between, an earlier
        checkpoint can have its bitmap on one image, and find the mark of a later one there.
        """
        newest = self.newest(dev)
        usual = self.last_full(dev) if of_full else newest
        # A restore to a directory that has nothing to do with this disk says nothing about its marks.
        since = [
            one
            for one in self._restored
            if one.dev == dev and _is_since(one, newest) and (one.is_in_place or one.bitmap in on_disk)
        ]
        starts: list[Start] = []
        if usual is not None:
            image = image_of(usual, dev)
            is_own = image.checkpoint is None
            is_latest = usual is newest and is_own and not since
            starts.append(Start(usual, image.bitmap or "", image.chain, is_latest, image.checkpoint or usual.id))
        for one in self._restored:  # the oldest first
            backup = self._by_id.get(one.backup)
            image_then = backup.image(dev) if backup is not None and one.dev == dev else None
            if backup is None or image_then is None or one.bitmap not in on_disk:
                continue
            if of_full and backup is not usual:
                continue
            place = 0 if one in since else len(starts)
            is_latest = bool(since) and one is since[-1]
            starts.insert(place, Start(backup, one.bitmap, one.chain, is_latest, backup.id, is_restored=True))
        return starts

    def start_at(self, backup_id: str, dev: str) -> Start | None:
        """Return the checkpoint of that backup of a disk as a start, whichever is newer; None if it has none."""
        backup = self._by_id.get(backup_id)
        image = backup.image(dev) if backup is not None else None
        if backup is None or image is None or image.bitmap is None:
            return None
        is_latest = backup is self.newest(dev) and image.checkpoint is None and not self.restored_since(dev)
        return Start(backup, image.bitmap, image.chain, is_latest, image.checkpoint or backup.id)

    def restored_since(self, dev: str) -> list[RestoredDisk]:
        """Return what was restored of a disk since its newest backup: the next one may start from each of them."""
        newest = self.newest(dev)
        return [
            one for one in self._restored if one.dev == dev and one.backup in self._by_id and _is_since(one, newest)
        ]

    def restored_bitmaps(self, dev: str) -> frozenset[str]:
        """Return the bitmaps of all checkpoints that were restored of a disk."""
        return frozenset(one.bitmap for one in self._restored if one.dev == dev)

    @property
    def checkpoints(self) -> frozenset[str]:
        """The ids of the removed fulls whose checkpoints heirs have taken over, on any disk."""
        images = (image for backup in self._by_id.values() for image in backup.disks)
        return frozenset(image.checkpoint for image in images if image.checkpoint is not None)

    def base_bitmaps(self, dev: str) -> frozenset[BitmapName]:
        """Return the bitmaps that a later backup of this disk can start from; they have to be kept."""
        return frozenset(bitmap for bitmap, _ in self._bases(dev))

    def end_marks(self, dev: str) -> frozenset[EndMark]:
        """Return the end marks that can invalidate these bases; they have to be kept."""
        return frozenset(EndMark(bitmap.repository_id, dev, size_bytes) for bitmap, size_bytes in self._bases(dev))

    def largest_base_bytes(self, dev: str) -> int:
        """Return the largest size in bytes that the disk had in one of these bases; 0 without a base."""
        return max((size_bytes for _, size_bytes in self._bases(dev)), default=0)

    def links(self, backup_id: str, dev: str, *, whole: Collection[tuple[str, str]] = ()) -> tuple[Link, ...]:
        """Return the images that make up the disk at that backup, newest first; the last is a full or a copy.

        The chain is followed only down to an image in ``whole`` (backup id, dev), below which it is known to be
        complete. Raises ChainError, naming the backup, if an image is missing or unusable.
        """
        links: list[Link] = []
        wanted: str | None = backup_id
        while wanted is not None:
            child = f"; backup {links[-1].backup.id} depends on it" if links else ""
            backup = self._by_id.get(wanted)
            if backup is None:
                raise ChainError(f"Disk {dev}: backup {wanted} is missing from the repository{child}.")
            image = backup.image(dev)
            if image is None:
                raise ChainError(f"Disk {dev}: backup {wanted} has no image of this disk{child}.")
            if (wanted, dev) in self._unusable:
                raise ChainError(f"Disk {dev}: the image of backup {wanted} is missing or has another size{child}.")
            if links and backup.sequence >= links[-1].backup.sequence:
                raise ChainError(f"Disk {dev}: backup {links[-1].backup.id} claims to depend on a later one, {wanted}.")
            if links and image.virtual_size_bytes > links[-1].image.virtual_size_bytes:
                # After a disk has shrunk, its next backup is a full.
                raise ChainError(
                    f"Disk {dev}: backup {links[-1].backup.id} claims to depend on a larger one, {wanted}."
                )
            links.append(self._link(backup, image))
            wanted = image.base if (wanted, dev) not in whole else None
        return tuple(links)

    def present(self, backup_id: str, dev: str) -> tuple[Link, ...]:
        """Return as ``links`` what there is, without an error: up to an image that has no manifest."""
        links: list[Link] = []
        seen: set[str] = set()
        wanted: str | None = backup_id
        while wanted is not None and wanted not in seen:
            seen.add(wanted)
            backup = self._by_id.get(wanted)
            image = backup.image(dev) if backup is not None else None
            if backup is None or image is None:
                break
            links.append(self._link(backup, image))
            wanted = image.base
        return tuple(links)

    def gap(self, backup: Backup) -> tuple[str, str] | None:
        """Return a disk of a backup, and the id of the backup that it depends on and that has no image of it."""
        for image in backup.disks:
            last = self.present(backup.id, image.dev)[-1]
            if last.image.base is not None:
                return image.dev, last.image.base
        return None

    def _link(self, backup: Backup, image: DiskImage) -> Link:
        return Link(backup, image, is_merging=any(backup.id == one.id for one in self.merging))

    def _bases(self, dev: str) -> Iterator[tuple[BitmapName, int]]:
        """Yield the bitmap and the disk's size in bytes of each backup that a later one can start from."""
        for base in (self.newest(dev), self.last_full(dev)):
            image = base.image(dev) if base is not None else None
            bitmap = names.parse_bitmap(image.bitmap or "") if image is not None else None
            if image is not None and bitmap is not None:
                yield bitmap, image.virtual_size_bytes
        for one in self.restored_since(dev):
            bitmap = names.parse_bitmap(one.bitmap)
            if bitmap is not None:
                yield bitmap, one.size_bytes

    def _checkpoints(self, dev: str) -> Iterator[Backup]:
        for backup in reversed(self.backups):
            image = backup.image(dev)
            if image is not None and image.bitmap is not None:
                yield backup


def _is_since(one: RestoredDisk, newest: Backup | None) -> bool:
    """Return True if no backup of the disk was made after the restore."""
    if newest is None or one.after > newest.sequence:
        return True
    return one.after == newest.sequence and one.after_id in (None, newest.id)


def image_of(backup: Backup, dev: str) -> DiskImage:
    """Return the image of disk ``dev`` in a backup that is known to have one."""
    image = backup.image(dev)
    assert image is not None
    return image
