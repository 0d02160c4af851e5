"""Bring a whole backup back from a copy of the repository, where others need it and it is not there any more.

All of it is staged beside the domain's backups, read and compared with its manifest, which has a digest of itself, and
gets its name in one step. So a run that is killed leaves nothing that looks like a backup.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from vbackup import files
from vbackup.errors import ChainError, StorageError
from vbackup.files import fsync, is_regular, storage_errors
from vbackup.model import Backup
from vbackup.repository import block_list, image_check, image_repair, manifest, readers
from vbackup.repository.catalogue import read_text
from vbackup.repository.history import Link
from vbackup.repository.image_check import Watch
from vbackup.repository.inspection import REPAIRED
from vbackup.repository.notes import NOTE
from vbackup.repository.protection import PROTECTED

_MANIFEST = "manifest.json"


def bring_back(target: Path, twins: Iterable[Path], *, check: Callable[[], None], is_dry: bool) -> Path | None:
    """Make the backup ``target``, which is not there, of the first of its twins that is whole; return which that was.

    None if no copy has it. With ``is_dry`` the twins are only read. Raises ChainError if a copy has it, but none whole;
    StorageError, NoSpaceError, BusyError.
    """
    flaw: ChainError | None = None
    for twin in twins:
        if not is_regular(twin / _MANIFEST):
            continue
        try:
            with readers.reading([twin]):
                if is_dry:
                    _check(twin, _backup(twin, target), check)
                else:
                    _copy(twin, target, check)
            return twin
        except ChainError as err:
            flaw = flaw or err
    if flaw is not None:
        raise ChainError(f"Backup {target.name} is missing, and cannot be brought back from a copy: {flaw}") from flaw
    return None


def _copy(twin: Path, target: Path, check: Callable[[], None]) -> None:
    stage = target.with_name(f"{REPAIRED}{target.name}")
    try:
        with storage_errors(f"write {stage}"):
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(mode=0o700)
            backup = _backup(twin, target)
            for name in _names(backup):
                if name in _OPTIONAL and not is_regular(twin / name):
                    continue
                if not is_regular(twin / name):
                    raise ChainError(f"{twin / name} is missing.")
                image_repair.copy(twin / name, stage / name, check=check)
                fsync(stage / name)
            fsync(stage)
        _check(stage, _backup(stage, target), check)
        with storage_errors(f"write {target}"):
            stage.rename(target)
            fsync(target.parent)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


#: What people have said of a backup: no manifest records it.
_OPTIONAL = (NOTE, PROTECTED)


def _names(backup: Backup) -> list[str]:
    lists = [f"{image.dev}{block_list.SUFFIX}" for image in backup.disks if image.blocks is not None]
    return [_MANIFEST, *backup.digests, *(image.file for image in backup.disks), *lists, *_OPTIONAL]


def _backup(directory: Path, target: Path) -> Backup:
    """Return what the manifest in a directory says, if it is that of the backup ``target``. Raises ChainError."""
    try:
        text = read_text(directory / _MANIFEST)
    except (OSError, ValueError) as err:
        raise ChainError(f"{directory / _MANIFEST} cannot be read: {err}.") from err
    return manifest.load(text, backup_id=target.name, domain_uuid=target.parent.name)


def _check(directory: Path, backup: Backup, check: Callable[[], None]) -> None:
    """Read all of a backup. Raises ChainError if anything is not what its manifest records."""
    for name, digest in backup.digests.items():
        try:
            found_digest = files.digest(directory / name, check=check)
        except StorageError as err:
            raise ChainError(f"{directory / name} cannot be read: {err}") from err
        if found_digest != digest:
            raise ChainError(f"{directory / name} was altered or is damaged.")
    for image in backup.disks:
        found = image_check.check(directory / image.file, Link(backup, image), Watch(lambda _read_bytes: check()))
        for finding in found.findings:
            raise ChainError(finding.reason)
