"""The directory in which the disks of a backup are mounted: prepared, and left as it was.

It holds an empty file for each disk, on which the storage daemon shows it, and the lock (vbackup.images.mount_lock).
What a mount that was killed has left is removed by the next one, or by ``vbackup umount``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup.errors import StorageError
from vbackup.files import open_regular, storage_errors
from vbackup.images import mount_lock, mount_points
from vbackup.report import Reporter


def file_of(directory: Path, dev: str) -> Path:
    """Return the file that shows the disk."""
    return directory / f"{dev}.raw"


@contextmanager
def prepared(directory: Path, *, reporter: Reporter) -> Iterator[Path]:
    """Yield the real path of an empty directory that nobody else mounts in; at the end it is empty again.

    If it is not there, it is created, but not its parents, and removed at the end. Raises StorageError if it cannot be
    used, BusyError if a backup is mounted there, or in a directory above it.
    """
    with storage_errors(f"use {directory}"):
        mount_lock.refuse_inside(directory.resolve())
    goes = is_new = _made(directory)
    try:
        with storage_errors(f"use {directory}"):
            place = directory.resolve(strict=True)
        with _claimed(place, reporter, is_new=is_new) as goes:
            yield place
    finally:
        if goes:
            remove(directory)


def remove(directory: Path) -> None:
    """Remove a directory that was made for a mount; it stays if somebody has put something there."""
    with contextlib.suppress(OSError):
        directory.rmdir()


@contextmanager
def created(directory: Path, dev: str) -> Iterator[Path]:
    """Create the file of a disk, and yield its path for the block, in which the disk is mounted on it.

    The file itself has no rights then, so that what a killed mount leaves is not taken for an empty disk: a helper of
    FUSE has to open the file for writing before. Raises StorageError.
    """
    path = file_of(directory, dev)
    with storage_errors(f"write to {directory}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield path
        with storage_errors(f"write to {directory}"):
            os.fchmod(fd, 0)
    finally:
        os.close(fd)


def clear(directory: Path) -> bool:
    """Unmount what is still mounted in the directory, a real path, and remove the files of disks.

    Return whether there were any. Only the holder of the lock may call this. Raises StorageError.
    """
    mounted = mount_points.mounted_in(directory)
    for path in mounted:
        mount_points.unmount(path, is_forced=True)
    with storage_errors(f"write to {directory}"):
        ours = [entry for entry in os.scandir(directory) if _is_ours(entry)]
        for entry in ours:
            Path(entry.path).unlink()
    return bool(mounted or ours)


def _made(directory: Path) -> bool:
    """Create the directory, and return True, if it is not there."""
    with storage_errors(f"create the directory {directory}"):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            if not directory.is_dir():
                raise StorageError(f"{directory} is not a directory; give an empty or a new one.") from None
            return False
        except FileNotFoundError as err:
            raise StorageError(
                f"Cannot create {directory}: the directory {directory.parent} is missing; create it first."
            ) from err
    return True


@contextmanager
def _claimed(place: Path, reporter: Reporter, *, is_new: bool) -> Iterator[bool]:
    """Yield whether the directory goes with the mount."""
    with storage_errors(f"read {place}"):
        others = [entry.name for entry in place.iterdir()]
    was_ours = mount_lock.NAME in others
    if others and not was_ours:
        raise StorageError(f"{place} is not empty: it has {others[0]}. Give an empty directory, or a new one.")
    with mount_lock.held(place, is_new=is_new) as goes:
        if was_ours and clear(place):
            reporter.warning(f"A mount that was killed had left something in {place}; it was removed.")
        with storage_errors(f"read {place}"):
            others = [entry.name for entry in place.iterdir() if entry.name != mount_lock.NAME]
        if others:
            raise StorageError(f"{place} is not empty: it has {others[0]}. Give an empty directory, or a new one.")
        try:
            yield goes
        finally:
            clear(place)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Return True for an empty regular file with a disk's name."""
    if mount_points.FILE.fullmatch(entry.name) is None or not entry.is_file(follow_symlinks=False):
        return False
    return entry.stat(follow_symlinks=False).st_size == 0


def refuse_unmounted(directory: Path) -> Path:
    """Return the real path of a directory in which a backup is mounted, or was when its process was killed.

    Raises StorageError if it is not such a directory.
    """
    with storage_errors(f"read {directory}"):
        try:
            place = directory.resolve(strict=True)
        except FileNotFoundError:
            raise StorageError(f"No backup is mounted at {directory}, which is not there.") from None
        if not place.is_dir():
            raise StorageError(f"{directory} is not a directory; give the one in which a backup is mounted.")
        try:
            os.close(open_regular(place / mount_lock.NAME))
        except FileNotFoundError:
            raise StorageError(f"No backup is mounted at {directory}.") from None
    return place
