"""What backups of a domain there are, and follow an image down to the full that its chain begins with.

vbackup.engine.base chooses which of them a new backup starts from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from vbackup import names
from vbackup.errors import ChainError
from vbackup.model import Backup, DiskImage, Level
from vbackup.names import BitmapName, EndMark


@dataclass(frozen=True)
class Link:
    """One image of a disk's chain."""

    backup: Backup
    image: DiskImage


class History:
    """The backups of one domain in one repository, oldest first, and which of their images are unusable.

    ``unusable`` has (backup id, dev) of images that are missing or have another size than recorded.
    """

    def __init__(self, backups: Sequence[Backup], unusable: Collection[tuple[str, str]] = ()) -> None:
        self.backups = tuple(sorted(backups, key=lambda backup: backup.sequence))
        self._by_id = {backup.id: backup for backup in self.backups}
        self._unusable = frozenset(unusable)

    def get(self, backup_id: str) -> Backup:
        """The backup of that id. Raises ChainError if there is none."""
        try:
            return self._by_id[backup_id]
        except KeyError:
            raise ChainError(f"No backup {backup_id!r} of this domain; 'vbackup list' shows those there are.") from None

    @property
    def next_sequence(self) -> int:
        """The sequence number of the backup that is committed next."""
        return self.backups[-1].sequence + 1 if self.backups else 1

    def newest(self, dev: str) -> Backup | None:
        """The newest backup that a next one of this disk may start from."""
        return next(self._checkpoints(dev), None)

    def last_full(self, dev: str) -> Backup | None:
        """The full that the newest backup of this disk stands on."""
        return next((one for one in self._checkpoints(dev) if image_of(one, dev).level is Level.FULL), None)

    def base_bitmaps(self, dev: str) -> frozenset[BitmapName]:
        """The bitmaps that a later backup of this disk may start from: they are kept."""
        return frozenset(bitmap for bitmap, _ in self._bases(dev))

    def end_marks(self, dev: str) -> frozenset[EndMark]:
        """The end marks that these bases may be distrusted for: they are kept."""
        return frozenset(EndMark(bitmap.repository_id, dev, size_bytes) for bitmap, size_bytes in self._bases(dev))

    def largest_base_bytes(self, dev: str) -> int:
        """The largest size the disk had in one of these bases; 0 if there is none."""
        return max((size_bytes for _, size_bytes in self._bases(dev)), default=0)

    def links(self, backup_id: str, dev: str, *, whole: Collection[tuple[str, str]] = ()) -> tuple[Link, ...]:
        """The images that hold the disk at that backup, newest first, the last one a full or a copy.

        At an image in ``whole`` (backup id and ``dev``) it ends earlier: all that is below was found before.
        Raises ChainError, naming the link, where one is missing or unusable.
        """
        links: list[Link] = []
        wanted: str | None = backup_id
        while wanted is not None:
            child = f"; backup {links[-1].backup.id} stands on it" if links else ""
            backup = self._by_id.get(wanted)
            if backup is None:
                raise ChainError(f"Disk {dev}: backup {wanted} is missing from the repository{child}.")
            image = backup.image(dev)
            if image is None:
                raise ChainError(f"Disk {dev}: backup {wanted} has no image of it{child}.")
            if (wanted, dev) in self._unusable:
                raise ChainError(f"Disk {dev}: the image of backup {wanted} is missing or has another size{child}.")
            if links and backup.sequence >= links[-1].backup.sequence:
                raise ChainError(f"Disk {dev}: backup {links[-1].backup.id} claims to stand on a later one, {wanted}.")
            if links and image.virtual_size_bytes > links[-1].image.virtual_size_bytes:
                # A disk that was made smaller gets a full.
                raise ChainError(f"Disk {dev}: backup {links[-1].backup.id} claims to stand on a larger one, {wanted}.")
            links.append(Link(backup, image))
            wanted = image.base if (wanted, dev) not in whole else None
        return tuple(links)

    def _bases(self, dev: str) -> Iterator[tuple[BitmapName, int]]:
        """Of each backup that a later one may start from: its bitmap, and the disk's size in bytes."""
        for base in (self.newest(dev), self.last_full(dev)):
            image = base.image(dev) if base is not None else None
            bitmap = names.parse_bitmap(image.bitmap or "") if image is not None else None
            if image is not None and bitmap is not None:
                yield bitmap, image.virtual_size_bytes

    def _checkpoints(self, dev: str) -> Iterator[Backup]:
        for backup in reversed(self.backups):
            image = backup.image(dev)
            if image is not None and image.bitmap is not None:
                yield backup


def image_of(backup: Backup, dev: str) -> DiskImage:
    """The image of disk ``dev`` in a backup that was found for this disk, so has one."""
    image = backup.image(dev)
    assert image is not None
    return image
