"""Read the committed backups of one domain: which can be restored, which are broken, and why.

Reads manifests and the sizes of images, not their contents (vbackup.repository.verify does that). Nothing is written
and no lock is needed: a committed backup does not change. vbackup.repository.history follows the chains.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vbackup import names
from vbackup.errors import ChainError
from vbackup.fields import Fields, parse_json
from vbackup.files import is_regular, read_regular, refuse_link, storage_errors
from vbackup.model import Backup, DiskImage, HostIdentity
from vbackup.repository import audited, manifest, merge_journal, restored
from vbackup.repository.history import History


@dataclass(frozen=True)
class Broken:
    """A backup that cannot be restored, and why."""

    id: str
    reason: str

    @property
    def sentence(self) -> str:
        """What is broken and why, each word once: the reason by itself names the backup too."""
        return f"Backup {self.id} is broken: {self.reason_alone}"

    @property
    def reason_alone(self) -> str:
        """The reason after a mention of the backup."""
        return self.reason.replace(f" of backup {self.id}", "")


@dataclass(frozen=True)
class Catalogue:
    """The backups of one domain."""

    uuid: str
    names: tuple[str, ...]  #: that the domain has had, the newest last
    history: History
    unreadable: tuple[Broken, ...]  #: not in the history, because their manifests cannot be read
    incomplete: tuple[Broken, ...]  #: an image of their chain is missing or unusable

    @property
    def broken(self) -> tuple[Broken, ...]:
        """All backups that cannot be restored."""
        return self.unreadable + self.incomplete

    def find(self, backup_id: str | None = None, at: datetime | None = None) -> Backup:
        """Return the backup with that id, else the newest made at that time or before, else the newest of all.

        Raises ChainError if there is no such backup, or if it could be one whose manifest cannot be read: an older
        backup never takes its place.
        """
        for broken in self.unreadable:
            if broken.id == backup_id:
                raise ChainError(broken.sentence)
        if backup_id is not None:
            return self.history.get(backup_id)
        candidates = [backup for backup in self.history.backups if at is None or backup.time <= at]
        newest_id = candidates[-1].id if candidates else ""
        newer = [
            broken
            for broken in self.unreadable
            if names.stamp_of(broken.id) >= names.stamp_of(newest_id)
            and (at is None or names.stamp_of(broken.id) <= names.stamp(at))
        ]
        if newer:
            newest = max(newer, key=lambda broken: names.stamp_of(broken.id))
            instead = (
                f" The newest readable one before it is {newest_id}; select it with --backup." if newest_id else ""
            )
            raise ChainError(f"Backup {newest.id}, the newest by its name, is broken: {newest.reason_alone}{instead}")
        if not candidates:
            raise ChainError(self._none(at))
        return candidates[-1]

    def _none(self, at: datetime | None) -> str:
        if at is None or not self.history.backups:
            option = self.history.source_option
            return f"No backup of this domain; 'vbackup list{option}' lists the domains that have some."
        oldest = self.history.backups[0]
        when = _as_given(oldest.time.astimezone(at.tzinfo))
        return f"No backup of this domain was made at {_as_given(at)} or before; the oldest, {oldest.id}, is of {when}."


def _as_given(time: datetime) -> str:
    """Return the time in its own zone, as in 2026-11-23 10:15:00+01:00."""
    return time.isoformat(" ", "seconds").replace("+00:00", "Z")


def read(
    directory: Path, uuid: str, *, with_chains: bool = True, has_images: bool = True, source_option: str = ""
) -> Catalogue:
    """Read all manifests in a domain's directory; backups whose manifest cannot be read are in ``unreadable``.

    Without ``with_chains`` it is for people only: no backup may start from one of these (vbackup.repository.manifest).
    Without ``has_images`` the images are elsewhere, and count as whole. ``source_option``: see History.

    Raises StorageError if the directory cannot be read, or is a symbolic link.
    """
    refuse_link(directory)
    backups: list[Backup] = []
    unreadable: list[Broken] = []
    unusable: set[tuple[str, str]] = set()
    merging = merge_journal.in_place(directory)
    for backup_id in sorted(_committed(directory)):
        try:
            backup = _manifest(directory, backup_id, uuid, with_chains=with_chains)
        except ChainError as err:
            unreadable.append(Broken(backup_id, _shortened(str(err))))
            continue
        backups.append(backup)
        is_whole = _is_there if backup_id in merging else _is_whole  # what is being merged into has another size
        place = f"{directory}/{backup_id}"
        if not has_images:
            continue
        unusable.update((backup_id, image.dev) for image in backup.disks if not is_whole(place, image))
    history = History(
        backups,
        unusable,
        audited.distrusted(directory, backups),
        merging=merging,
        restored=restored.read(directory),
        source_option=source_option,
    )
    return Catalogue(
        uuid,
        tuple(domain_names(directory)),
        history=history,
        unreadable=tuple(unreadable),
        incomplete=tuple(_incomplete(history, directory)),
    )


def domain_names(directory: Path) -> list[str]:
    """Return the names that the domain has had, from domain.json; the newest last.

    If the file is missing or damaged, the UUID takes the place of the name: only people use these names.
    """
    try:
        value = parse_json(read_text(directory / "domain.json"))
        recorded = [name for name in value["names"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        recorded = []
    return recorded or [directory.name]


def domain_hosts(directory: Path) -> list[HostIdentity]:
    """Return the hosts that the domain has been on, from domain.json; the newest last.

    Those that cannot be read are missing: every manifest has its own.
    """
    try:
        value = Fields(parse_json(read_text(directory / "domain.json")), "domain.json", ChainError)
        return [manifest.host(entry) for entry in value.objects("hosts")] if "hosts" in value else []
    except (OSError, ValueError, RecursionError, ChainError):
        return []


def read_text(path: Path | str) -> str:
    """Return the text of a regular file. Raises OSError, and ValueError if it is too large or not UTF-8."""
    return read_regular(path, max_bytes=manifest.MAX_SIZE_BYTES).decode()


def _committed(directory: Path) -> Iterator[str]:
    with storage_errors(f"read {directory}"):
        try:
            with os.scandir(directory) as entries:
                found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return
    yield from filter(names.BACKUP_ID.fullmatch, found)


def _manifest(directory: Path, backup_id: str, uuid: str, *, with_chains: bool) -> Backup:
    try:
        text = read_text(f"{directory}/{backup_id}/manifest.json")
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise ChainError(f"The manifest of backup {backup_id} cannot be read: {reason}.") from err
    return manifest.load(text, backup_id=backup_id, domain_uuid=uuid, with_chains=with_chains)


def _is_there(directory: str, image: DiskImage) -> bool:
    return is_regular(Path(directory) / image.file)


def _is_whole(directory: str, image: DiskImage) -> bool:
    try:
        status = os.lstat(f"{directory}/{image.file}")
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == image.file_size_bytes


def _shortened(text: str) -> str:
    """Return the text, cut after 500 characters: an error message can quote a manifest at any length."""
    limit = 500
    return text if len(text) <= limit else f"{text[:limit]}... (the rest of {len(text)} characters is left out)"


def _exchanged(backup: Backup, history: History, directory: Path) -> str:
    """Return what to do if the images of a backup are incomplete because an exchange file by file was interrupted."""
    for image in backup.disks:
        for link in history.present(backup.id, image.dev):
            if (directory / f"{merge_journal.MERGE}{link.backup.id}" / merge_journal.PUBLISH).exists():
                return (
                    f" The images of backup {link.backup.id} are being exchanged, or that was interrupted: nothing is"
                    " lost, and 'vbackup recover' finishes it."
                )
    return ""


def _incomplete(history: History, directory: Path) -> Iterator[Broken]:
    # In the order of sequence numbers, a base comes before the backups that depend on it: no link is followed twice.
    whole: set[tuple[str, str]] = set()
    for backup in history.backups:
        for image in backup.disks:
            try:
                history.links(backup.id, image.dev, whole=whole)
                whole.add((backup.id, image.dev))
            except ChainError as err:
                yield Broken(backup.id, str(err) + _exchanged(backup, history, directory))
