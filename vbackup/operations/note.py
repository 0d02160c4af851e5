"""Give a backup a note, change it or remove it (vbackup.repository.notes)."""

from __future__ import annotations

from dataclasses import dataclass

from vbackup.operations import protect
from vbackup.report import Reporter
from vbackup.repository import lookup, notes
from vbackup.repository.lock import LockWait
from vbackup.repository.lookup import Found
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class NoteRequest:
    """The options of ``vbackup note``."""

    backup_id: str
    text: str  #: "" removes the note; otherwise vbackup.repository.notes has no fault to find
    uuid: str | None = None  #: of the domain; None: whatever domain has a backup with the id
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain


def run(request: NoteRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> Found:
    """Write the note and return the backup. Raises ChainError for an unknown one, BusyError, StorageError."""

    def change(backup: Found) -> None:
        if request.text:
            notes.write(backup.directory, request.text)
        else:
            notes.remove(backup.directory)

    found = lookup.find(repository, [request.backup_id], request.uuid)
    protect.with_lock(found, change, repository=repository, wait=LockWait(request.wait_lock_s, reporter, stop))
    return found[0]
