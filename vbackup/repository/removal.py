"""Remove a backup: give its directory a name that no reader takes for a backup, then delete it.

The rename is the removal, as another one was the commit: at every moment the backup is whole or gone. What a killed run
did not delete has the new name, and the next run deletes it. Whoever calls this has the domain's lock.
"""

from __future__ import annotations

import os
from pathlib import Path

from vbackup.files import fsync, storage_errors
from vbackup.repository import immutability, readers

#: Prefix of a backup that is removed and not yet deleted.
REMOVED = ".removed-"


def take_away(directory: Path) -> bool:
    """Remove the backup in that directory; return False if somebody reads it, and it stays. Raises StorageError.

    Its files are still there until ``delete_removed``. Remove backups before those that they depend on.
    """
    with storage_errors(f"remove {directory}"), readers.claimed(directory) as is_free:
        if is_free:
            directory.rename(_free_name(directory))
            fsync(directory.parent)
        return is_free


def _free_name(directory: Path) -> Path:
    """Return the new path; it is only taken if an earlier backup of that id could not be deleted."""
    path, number = directory.with_name(f"{REMOVED}{directory.name}"), 1
    while os.path.lexists(path):
        number += 1
        path = directory.with_name(f"{REMOVED}{directory.name}.{number}")
    return path


def removed(domain_directory: Path) -> list[Path]:
    """Return the directories of removed backups that are not deleted yet. Raises StorageError."""
    with storage_errors(f"read {domain_directory}"):
        return sorted(entry for entry in domain_directory.iterdir() if entry.name.startswith(REMOVED))


def delete_removed(domain_directory: Path) -> list[str]:
    """Delete what ``take_away`` removed, in this run or another; return what could not be, with the reasons.

    Raises StorageError if the domain's directory cannot be read.
    """
    failed: list[str] = []
    for path in removed(domain_directory):
        try:
            if path.is_dir() and not path.is_symlink():
                immutability.delete(path)
            else:
                path.unlink()
        except OSError as err:
            failed.append(f"{path}: {err.strerror or err}")
    return failed


def allocated_bytes(directory: Path) -> int:
    """Return the room that the files of a backup take, in bytes; what cannot be seen counts nothing.

    Blocks that are shared by reflink count in full, in each of the files that have them.
    """
    try:
        return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in os.scandir(directory))
    except OSError:
        return 0
