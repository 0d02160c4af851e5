"""Backups in the repository that are immutable for days, with all that they depend on (vbackup.immutable).

Their images, block lists, manifests, and files such as domain.xml have the flag; the directory does not, as notes, the
result of a verify and the like are written into it. Needs the domain's lock.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from vbackup import immutable
from vbackup.files import is_regular, storage_errors
from vbackup.model import Backup
from vbackup.repository import block_list
from vbackup.repository.history import History

_MANIFEST = "manifest.json"


def chain(history: History, backup_id: str) -> list[Backup]:
    """Return a backup and all that its disks depend on, the newest first. Raises ChainError if one is missing."""
    backup = history.get(backup_id)
    found = {backup.id: backup}
    for image in backup.disks:
        found.update((link.backup.id, link.backup) for link in history.links(backup_id, image.dev))
    return sorted(found.values(), key=lambda each: each.sequence, reverse=True)


def make(directory: Path, backup: Backup, until: datetime) -> None:
    """Make the files of a backup immutable, at least until then; the manifest last. Raises StorageError."""
    lists = [Path(image.file).with_suffix(block_list.SUFFIX).name for image in backup.disks]
    with storage_errors(f"make what is in {directory} immutable"):
        for name in [*(image.file for image in backup.disks), *lists, *backup.digests, _MANIFEST]:
            if is_regular(directory / name):
                immutable.make(directory / name, until)


def until(directory: Path) -> datetime | None:
    """Return until when the backup in that directory is immutable; None if it is not, or cannot be looked at."""
    try:
        return immutable.until(directory / _MANIFEST)
    except OSError:
        return None


def reason(directory: Path) -> str | None:
    """Return why the backup in that directory is not removed or replaced now, as a phrase; None if it may be."""
    end = until(directory)
    if end is None or end <= datetime.now(end.tzinfo):
        return None
    if end == immutable.FOR_EVER:
        return "immutable: its files have the flag of chattr +i, which vbackup has not set"
    return f"immutable until {end.astimezone():%Y-%m-%d %H:%M}"


def delete(directory: Path) -> None:
    """Delete the directory of a backup that was removed, also if it has been immutable until now. Raises OSError."""
    import shutil  # imports all compression modules

    for path in directory.iterdir():
        if is_regular(path):
            immutable.release(path)
    shutil.rmtree(directory)
