"""Look at the backups of a domain quickly: the newest that can be restored, how long its chain is, what was verified.

For 'vbackup status', which looks at hundreds of domains with dozens of backups each. What a newest backup says of
itself is compared with its digest; of all older ones only that is read which makes up the chain, and their digests are
left to vbackup.repository.catalogue, 'vbackup verify' and 'vbackup check'. Nothing is written, no lock is needed.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.errors import ChainError
from vbackup.fields import parse_json
from vbackup.files import read_regular, refuse_link, storage_errors
from vbackup.model import Backup
from vbackup.repository import catalogue, change_watch, manifest, merge_journal, verification
from vbackup.repository.verification import Verdict

#: Of backups whose data is told, the latest: a trend.
LATEST = 30
#: vbackup.fields.parse_json looks at each number by itself, in case it has a million digits: in a text as short as this
#: a number is no such burden, and the decoder in C takes a third of the time.
_SHORT_BYTES = 64 * 1024
_QUICK = json.JSONDecoder()


@dataclass(frozen=True)
class SeenImage:
    """An image of a disk, as far as the manifest was read."""

    dev: str
    base: str | None
    file_size_bytes: int


@dataclass(frozen=True)
class SeenBackup:
    """A backup, as far as its manifest was read."""

    id: str
    sequence: int
    time: datetime
    level: str
    size_bytes: int
    changed_bytes: int  #: data that was copied
    images: tuple[SeenImage, ...]


@dataclass(frozen=True)
class Glance:
    """The backups of a domain."""

    uuid: str
    name: str  #: the one that it had last
    ids: frozenset[str]  #: of all that are committed
    newest: SeenBackup | None  #: the newest that can be restored; its whole manifest was read
    chain_images: int  #: length of its longest chain
    broken: str | None  #: why a newer one than that cannot be restored, as a sentence
    latest: tuple[SeenBackup, ...]  #: those with the highest sequence numbers, oldest first, at most LATEST
    size_bytes: int  #: of the images of all
    verified: datetime | None  #: when the last verify of one of them ended
    verdict: Verdict | None  #: of that
    damaged: tuple[str, ...]  #: ids of those in which damage was found
    unusual: tuple[str, ...] = ()  #: sentences on the newest one's changes


def read(directory: Path, uuid: str, *, has_images: bool = True) -> Glance:
    """Look at the backups in a domain's directory. ``has_images``: False if images are elsewhere, and count as whole.

    Raises StorageError if the directory cannot be read, or is a symbolic link.
    """
    refuse_link(directory)
    place = os.fspath(directory)
    ids = _committed(place)
    merging = merge_journal.in_place(directory)
    seen, unreadable = _seen(place, ids)
    whole = _Chains(place, seen, merging, has_images=has_images)
    ordered = sorted(seen.values(), key=lambda one: one.sequence)
    shown = [one for one in ordered if one.id not in merging]
    newest, read_whole, chain_images, broken = _newest(directory, uuid, shown, whole)
    broken = _not_read(unreadable, shown) or broken
    verdicts = list(_verdicts(place, ids - merging))
    last = max(verdicts, key=lambda one: one[1], default=None)
    return Glance(
        uuid=uuid,
        name=catalogue.domain_names(directory)[-1],
        ids=frozenset(ids - merging),
        newest=newest,
        chain_images=chain_images,
        broken=broken,
        latest=tuple(shown[-LATEST:]),
        size_bytes=sum(one.size_bytes for one in shown),
        verified=last[1] if last is not None else None,
        verdict=last[2] if last is not None else None,
        damaged=tuple(sorted(one[0] for one in verdicts if one[2] is Verdict.DAMAGED)),
        unusual=_unusual(read_whole),
    )


def _committed(directory: str) -> set[str]:
    with storage_errors(f"read {directory}"), os.scandir(directory) as entries:
        return {
            entry.name
            for entry in entries
            if names.BACKUP_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        }


def _seen(directory: str, ids: Collection[str]) -> tuple[dict[str, SeenBackup], list[str]]:
    """Return the backups whose manifests can be read, and the ids of the others."""
    seen: dict[str, SeenBackup] = {}
    unreadable = []
    for backup_id in ids:
        try:
            seen[backup_id] = _backup(_object(f"{directory}/{backup_id}/{manifest.NAME}"), backup_id)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ChainError):
            unreadable.append(backup_id)
    return seen, unreadable


def _object(path: str) -> dict[str, Any]:
    data = read_regular(path, max_bytes=manifest.MAX_SIZE_BYTES)
    text = data.decode()
    value = _QUICK.decode(text) if len(data) <= _SHORT_BYTES else parse_json(text)
    if not isinstance(value, dict):
        raise TypeError(path)
    return value


def _backup(value: dict[str, Any], backup_id: str) -> SeenBackup:
    disks = value["disks"]
    return SeenBackup(
        backup_id,
        int(value["sequence"]),
        manifest.time(value["time"], backup_id),
        str(value["level"]),
        int(value["size_bytes"]),
        sum(_changed_bytes(disk) for disk in disks),
        tuple(SeenImage(_name(disk["dev"]), disk["base"], int(disk["file_size_bytes"])) for disk in disks),
    )


def _changed_bytes(disk: dict[str, Any]) -> int:
    change = disk.get("change")
    return int(disk["copied_bytes"] if change is None else change["data_bytes"])


def _name(dev: str) -> str:
    if not names.DEV.fullmatch(dev):  # it becomes part of a path
        raise ValueError(dev)
    return dev


class _Chains:
    """Finds out which images are whole, each once."""

    def __init__(
        self, directory: str, seen: dict[str, SeenBackup], merging: Collection[str], *, has_images: bool
    ) -> None:
        self._directory, self._seen, self._merging, self._has_images = directory, seen, merging, has_images

    def length(self, backup: SeenBackup) -> int:
        """Return the length of its longest chain. Raises ChainError if an image is missing."""
        return max((self._length(backup, image.dev) for image in backup.images), default=0)

    def _length(self, backup: SeenBackup, dev: str) -> int:
        length, child, wanted = 0, "", backup
        while True:
            image = next((one for one in wanted.images if one.dev == dev), None)
            if image is None:
                raise ChainError(f"Disk {dev}: backup {wanted.id} has no image of this disk{child}.")
            if self._has_images and not self._is_whole(wanted.id, image):
                raise ChainError(f"Disk {dev}: the image of backup {wanted.id} is missing or has another size{child}.")
            length += 1
            if image.base is None:
                return length
            base = self._seen.get(image.base)
            if base is None:
                raise ChainError(
                    f"Disk {dev}: backup {image.base} is missing from the repository; backup {wanted.id} depends on it."
                )
            if base.sequence >= wanted.sequence:
                raise ChainError(f"Disk {dev}: backup {wanted.id} claims to depend on a later one, {base.id}.")
            child, wanted = f"; backup {wanted.id} depends on it", base

    def _is_whole(self, backup_id: str, image: SeenImage) -> bool:
        try:
            status = os.lstat(f"{self._directory}/{backup_id}/{image.dev}.qcow2")
        except OSError:
            return False
        # What is being merged into has another size.
        is_size = status.st_size == image.file_size_bytes or backup_id in self._merging
        return stat.S_ISREG(status.st_mode) and is_size


def _newest(
    directory: Path, uuid: str, ordered: Sequence[SeenBackup], chains: _Chains
) -> tuple[SeenBackup | None, Backup | None, int, str | None]:
    """Return the newest backup that can be restored, twice, the length of its chain, and why a newer one cannot."""
    broken: str | None = None
    for one in reversed(ordered):
        try:
            length = chains.length(one)
            text = catalogue.read_text(directory / one.id / manifest.NAME)
            return one, manifest.load(text, backup_id=one.id, domain_uuid=uuid, with_chains=False), length, broken
        except (OSError, ValueError, ChainError) as err:
            broken = broken or f"Backup {one.id} is broken: {err}"
    return None, None, 0, broken


def _not_read(unreadable: Sequence[str], ordered: Sequence[SeenBackup]) -> str | None:
    """Return a sentence on the newest backup that cannot be read, if by its id it is newer than all others."""
    stamp = max((names.stamp_of(one.id) for one in ordered), default="")
    newer = [one for one in unreadable if names.stamp_of(one) > stamp]
    return f"Backup {max(newer)} is broken: its manifest cannot be read." if newer else None


def _verdicts(directory: str, ids: Collection[str]) -> Iterator[tuple[str, datetime, Verdict]]:
    """Yield id, time and verdict of each backup that was verified."""
    for backup_id in ids:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, ChainError):
            value = _object(f"{directory}/{backup_id}/{verification.NAME}")
            if value["schema"] == verification.SCHEMA:
                yield backup_id, manifest.time(value["time"], verification.NAME), Verdict(value["verdict"])


def _unusual(newest: Backup | None) -> tuple[str, ...]:
    if newest is None:
        return ()
    return tuple(f"Disk {dev}: {what}" for dev, what in change_watch.unusual(newest).items())
