"""Repair: bring whole backups back, and put away those that cannot be used."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from vbackup import names
from vbackup.errors import BusyError, ChainError, NoSpaceError, StorageError
from vbackup.fields import parse_json
from vbackup.files import fsync, is_directory, storage_errors
from vbackup.operations.repair_work import Work
from vbackup.repository import backup_repair, manifest, quarantine, readers
from vbackup.repository.catalogue import Catalogue, read_text

_PROTECTED = "protected"
#: Errors that say nothing about a file: it may be readable tomorrow, or for another user.
_FAILING = frozenset(
    (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.EHOSTDOWN)
)


def take_back(work: Work) -> None:
    """Take back from the quarantine what a copy could repair; if it cannot, it is put away again."""
    store = work.repository.path / quarantine.NAME / work.uuid
    if not is_directory(store):
        return
    for kept in sorted(store.iterdir()):
        path = work.directory / kept.name
        can_be_repaired = any(is_directory(twin) for twin in work.sources.twins(path))
        if not names.BACKUP_ID.fullmatch(kept.name) or not can_be_repaired or os.path.lexists(path):
            continue
        if not work.is_dry:
            with storage_errors(f"move {kept}"):
                kept.rename(path)
                fsync(work.directory)
        work.note(f"Backup {kept.name} was taken back.", f"Backup {kept.name} would be taken back.")


def bring_back_missing(work: Work) -> None:
    """Bring back from a copy the backups that others depend on, and that are not here or are without an image."""
    if work.is_merging:
        return  # what has been removed is known only when that has ended
    tried: set[str] = set()
    while wanted := _wanted(work) - tried:
        tried |= wanted
        for backup_id in sorted(wanted):
            work.stop.check()
            try:
                _bring_back(work, backup_id)
            except NoSpaceError:
                raise
            except (ChainError, StorageError, BusyError) as err:
                work.fail(str(err))


def _wanted(work: Work) -> set[str]:
    read = work.repository.catalogue(work.uuid)
    gaps = [gap[1] for backup in read.history.backups if (gap := read.history.gap(backup)) is not None]
    wanted = {backup_id for backup_id in gaps if not os.path.lexists(work.directory / backup_id)}
    for broken in read.unreadable:  # an image would prove its manifest, or show that it is another
        if is_directory(work.directory / broken.id) and not any((work.directory / broken.id).glob("*.qcow2")):
            wanted.add(broken.id)
    return wanted


def _bring_back(work: Work, backup_id: str) -> None:
    path = work.directory / backup_id
    # A backup is known by its id in one repository only.
    copies = [copy for copy in work.copies if copy.id == work.repository.id]
    twins = [copy.path / path.relative_to(work.repository.path) for copy in copies]
    if os.path.lexists(path):
        if not any(is_directory(twin) for twin in twins) or _why_not_moved(work, path) is not None:
            return  # put_away deals with it
        if not work.is_dry:
            quarantine.put(work.repository, path)
    source = backup_repair.bring_back(path, twins, check=work.stop.check, is_dry=work.is_dry)
    if source is not None:
        work.is_incomplete = work.is_dry
        work.note(
            f"Backup {backup_id} was brought back from {source}.",
            f"Backup {backup_id} would be brought back from {source}.",
        )
    elif len(copies) < len(work.copies):
        work.fail(
            f"Backup {backup_id} is missing. What has another id than {work.repository.id} is no copy of this"
            " repository, so a whole backup is not taken from there. Give a copy of it with --from."
        )
    else:
        work.fail(f"Backup {backup_id} is missing. Give a copy of the repository that has it with --from.")


def put_away(work: Work) -> None:
    """Move backups of which nothing can be restored to the quarantine."""
    read = work.repository.catalogue(work.uuid)
    usable = {backup.id for backup in read.history.backups if _has_a_whole_disk(read, backup.id)}
    unusable = [broken.id for broken in read.unreadable]
    unusable += [backup.id for backup in read.history.backups if backup.disks and backup.id not in usable]
    if work.is_incomplete:
        return
    if unusable and work.is_merging:
        work.fail(
            f"What cannot be restored now ({', '.join(unusable)}) stays where it is until the interrupted merge or"
            " removal is finished."
        )
        return
    for backup_id in unusable:
        path = work.directory / backup_id
        reason = _why_not_moved(work, path)
        if reason is not None:
            work.fail(f"Backup {backup_id} cannot be restored now, but stays where it is: {reason}.")
            continue
        kept = quarantine.put(work.repository, path) if not work.is_dry else None
        work.note(
            f"Backup {backup_id}, of which nothing can be restored, was moved to {kept}.",
            f"Backup {backup_id}, of which nothing can be restored, would be moved to the quarantine.",
        )


def _why_not_moved(work: Work, path: Path) -> str | None:
    """Return why a backup that cannot be restored stays where it is; None if it may be moved."""
    if (path / _PROTECTED).exists():
        return "it is protected"
    reason = _why_it_stays(path)
    if reason is None:
        with storage_errors(f"lock {path}"), readers.claimed(path) as is_free:
            if not is_free:
                return "it is being read"
    return reason


def _has_a_whole_disk(read: Catalogue, backup_id: str) -> bool:
    for image in read.history.get(backup_id).disks:
        with suppress(ChainError):
            read.history.links(backup_id, image.dev)
            return True
    return False


def _why_it_stays(directory: Path) -> str | None:
    """Return why a backup that cannot be used now may be usable all the same; None if there is no such reason."""
    try:
        value = parse_json(read_text(directory / "manifest.json"))
        schema = value.get("schema") if isinstance(value, dict) else None
        if isinstance(schema, str) and schema.startswith("vbackup.manifest/") and schema != manifest.SCHEMA:
            return "a newer vbackup made it"
        for entry in directory.iterdir():
            entry.lstat()
    except (ValueError, RecursionError):
        return None
    except OSError as err:
        if err.errno in _FAILING:
            return f"its storage may be failing ({err.strerror})"
    return None
