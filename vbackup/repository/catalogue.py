"""The backups of one domain in a repository: those that can be used, and those that are broken, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vbackup import names
from vbackup.errors import ChainError
from vbackup.fields import parse_json
from vbackup.files import is_directory, is_regular, read_regular, storage_errors
from vbackup.model import Backup, DiskImage
from vbackup.repository import manifest
from vbackup.repository.history import History


@dataclass(frozen=True)
class Broken:
    """A backup that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """The backups of one domain."""

    uuid: str
    names: tuple[str, ...]  #: the domain has had, the newest last
    history: History
    unreadable: tuple[Broken, ...]  #: their manifests cannot be read, so they are not in the history
    incomplete: tuple[Broken, ...]  #: a link that they stand on is missing

    @property
    def broken(self) -> tuple[Broken, ...]:
        """All that cannot be restored."""
        return self.unreadable + self.incomplete

    def find(self, backup_id: str | None = None, at: datetime | None = None) -> Backup:
        """The backup of that id, the newest made at that time or before, or the newest of all.

        Raises ChainError if there is none, or if it could be one whose manifest cannot be read: an older
        one is never given out for it.
        """
        for broken in self.unreadable:
            if broken.id == backup_id:
                raise ChainError(f"Backup {backup_id} is broken: {broken.reason}")
        if backup_id is not None:
            return self.history.get(backup_id)
        fitting = [backup for backup in self.history.backups if at is None or backup.time <= at]
        found = fitting[-1].id if fitting else ""
        for broken in self.unreadable:
            made_at = names.stamp_of(broken.id)
            if made_at >= names.stamp_of(found) and (at is None or made_at <= names.stamp(at)):
                instead = f" The newest before it is {found}; restore that with --backup." if found else ""
                raise ChainError(f"Backup {broken.id}, the newest by its name, is broken: {broken.reason}{instead}")
        if not fitting:
            when = f" made at {manifest.iso(at)} or before" if at is not None else ""
            raise ChainError(f"There is no backup of this domain{when}; 'vbackup list' shows those there are.")
        return fitting[-1]


def read(directory: Path, uuid: str) -> Catalogue:
    """Read all manifests of a domain from its directory; those that cannot be read are in ``broken``.

    Raises StorageError where the directory cannot be read.
    """
    backups: list[Backup] = []
    unreadable: list[Broken] = []
    unusable: set[tuple[str, str]] = set()
    for backup_id in sorted(_committed(directory)):
        try:
            backup = _manifest(directory, backup_id, uuid)
        except ChainError as err:
            unreadable.append(Broken(backup_id, _shortened(str(err))))
            continue
        backups.append(backup)
        unusable.update((backup_id, image.dev) for image in backup.disks if not _is_whole(directory / backup_id, image))
    history = History(backups, unusable)
    return Catalogue(uuid, tuple(domain_names(directory)), history, tuple(unreadable), tuple(_incomplete(history)))


def domain_names(directory: Path) -> list[str]:
    """The names the domain has had, from domain.json; the newest last.

    The file is a help for people, so a damaged one costs only the name.
    """
    try:
        value = parse_json(read_text(directory / "domain.json"))
        found = [name for name in value["names"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = []
    return found or [directory.name]


def read_text(path: Path) -> str:
    """A file of the record. Raises OSError, and ValueError where it is not UTF-8."""
    return read_regular(path, max_bytes=manifest.MAX_SIZE_BYTES).decode()


def _committed(directory: Path) -> Iterator[str]:
    with storage_errors(f"read {directory}"):
        try:
            entries = list(directory.iterdir())
        except FileNotFoundError:
            return
    for entry in entries:
        if names.BACKUP_ID.fullmatch(entry.name) and is_directory(entry):
            yield entry.name


def _manifest(directory: Path, backup_id: str, uuid: str) -> Backup:
    try:
        text = read_text(directory / backup_id / "manifest.json")
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise ChainError(f"The manifest of backup {backup_id} cannot be read: {reason}.") from err
    return manifest.load(text, backup_id=backup_id, domain_uuid=uuid)


def _is_whole(directory: Path, image: DiskImage) -> bool:
    path = directory / image.file
    try:
        return is_regular(path) and path.stat().st_size == image.file_size_bytes
    except OSError:
        return False


def _shortened(text: str) -> str:
    """A sentence that quotes what a manifest says, which can be of any length."""
    limit = 500
    return text if len(text) <= limit else f"{text[:limit]}... (the rest of {len(text)} characters is left out)"


def _incomplete(history: History) -> Iterator[Broken]:
    # Backups come in the order they stand on each other, so no link is followed twice.
    whole: set[tuple[str, str]] = set()
    for backup in history.backups:
        for image in backup.disks:
            try:
                history.links(backup.id, image.dev, whole=whole)
                whole.add((backup.id, image.dev))
            except ChainError as err:
                yield Broken(backup.id, str(err))
