"""Find out whether another vbackup is making a backup, also where the lock of its domain does not lock.

vbackup.repository.journal has the writer of each unfinished backup, vbackup.repository.writer says whether it lives.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from vbackup.errors import BusyError, ChainError, NewerJournalError
from vbackup.repository import journal, lock, merge_journal
from vbackup.repository.writer import DEAD_S, Writer


def refuse_live_writer(stage: Path, *, backup_id: str, domain_uuid: str, presume_dead: bool) -> None:
    """Raise BusyError if another process is making the backup in that stage. The domain's lock is held, if it locks.

    ``presume_dead``: a writer on another host or in a container counts as dead however recently it was seen; a process
    of this host is looked up anyway. Raises NewerJournalError, OSError.
    """
    if stage.is_symlink() or not stage.is_dir():
        return
    try:
        entry = journal.read(stage, backup_id=backup_id, domain_uuid=domain_uuid)
    except NewerJournalError:
        raise
    except ChainError:
        return
    lock_path = stage.parent / "lock"
    has_lock = lock.works(lock_path)
    touched = journal.touched(stage) if entry is not None else stage.stat().st_mtime
    silent_s = now(lock_path) - (touched or 0.0)
    if entry is None:  # it may have just been made
        is_alive = not (has_lock or presume_dead) and silent_s < DEAD_S
        sign = "a vbackup that has not written its journal yet" if is_alive else None
    elif not entry.is_of(stage):
        return  # a copy: its writer works on the original
    else:
        sign = entry.writer.sign_of_life(silent_s, has_lock=has_lock, presume_dead=presume_dead)
    if sign is None:
        return
    raise BusyError(f"Backup {backup_id} of domain {domain_uuid} is being made by {sign}; wait for it to end.")


def refuse_live_merger(directory: Path, *, domain_uuid: str, presume_dead: bool) -> None:
    """Raise BusyError if another process merges backups of the domain. As ``refuse_live_writer``."""
    try:
        entry = merge_journal.read(directory)
    except ChainError:
        return
    if entry is None or not entry.is_of(directory):
        return
    lock_path = directory / "lock"
    silent_s = now(lock_path) - (directory / merge_journal.NAME).stat().st_mtime
    sign = entry.writer.sign_of_life(silent_s, has_lock=lock.works(lock_path), presume_dead=presume_dead)
    if sign is not None:
        raise BusyError(f"Backups of domain {domain_uuid} are being merged by {sign}; wait for it to end.")


def seems_at_work(stage: Path, *, backup_id: str, domain_uuid: str) -> bool:
    """Return True if the process that writes the journal of that stage seems to be alive.

    For people only: nothing is written and no lock is taken, not even for a moment, since a backup that wants it then
    would fail. So a writer that cannot be looked up, on another host or in a container, is judged by this host's clock.
    """
    try:
        entry = journal.read(stage, backup_id=backup_id, domain_uuid=domain_uuid)
        touched = journal.touched(stage)
        if entry is None or touched is None or not entry.is_of(stage):
            return False
        return is_at_work(entry.writer, stage.parent, silent_s=time.time() - touched)
    except (ChainError, OSError):
        return False


def is_at_work(writer: Writer, directory: Path, *, silent_s: float) -> bool:
    """Return True if the writer of a journal in a domain's directory seems to be alive, maybe in another thread.

    ``silent_s`` is how long ago it touched its journal. As ``seems_at_work``, for people only.
    """
    if writer.is_this_process:
        return lock.is_held_here(directory)
    return writer.sign_of_life(silent_s, has_lock=False) is not None


def now(lock_path: Path) -> float:
    """Return the time of the filesystem's clock, which may differ from this host's. Raises OSError."""
    os.utime(lock_path)
    return lock_path.stat().st_mtime
