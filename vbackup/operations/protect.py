"""Protect backups from being removed, and end that (vbackup.repository.protection)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from vbackup import immutable
from vbackup.report import Reporter
from vbackup.repository import immutability, lookup, protection
from vbackup.repository.lock import LockWait
from vbackup.repository.lookup import Found
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class ProtectRequest:
    """The options of ``vbackup protect`` and ``vbackup unprotect``."""

    ids: tuple[str, ...]
    uuid: str | None = None  #: of the domain; None: whatever domain has a backup with the id
    is_protected: bool = True  #: False: end the protection
    reason: str | None = None  #: for people
    immutable_days: int | None = None  #: instead of all that: make them, and what they depend on, immutable
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain


@dataclass(frozen=True)
class Changed:
    """A backup, and the protection that it has now."""

    backup: Found
    domain_name: str
    protection: Protection | None
    immutable_until: datetime | None = None


def run(request: ProtectRequest, *, repository: Repository, reporter: Reporter, stop: Stop) -> list[Changed]:
    """Protect the backups, or end their protection; return what they are now.

    A backup that is protected keeps the time and the reason that it has, unless there is a new reason. Raises
    ChainError before anything is changed if one of them is unknown, or if one that is to be immutable depends on one
    that is missing; BusyError, StorageError.
    """
    found = lookup.find(repository, request.ids, request.uuid)
    wait = LockWait(request.wait_lock_s, reporter, stop)
    if request.immutable_days is None:
        _protect(request, found, repository=repository, wait=wait)
    else:
        _make_immutable(found, request.immutable_days, repository=repository, wait=wait)
    return [
        Changed(
            backup,
            repository.name_of(backup.uuid),
            protection.read(backup.directory),
            immutability.until(backup.directory),
        )
        for backup in found
    ]


def _protect(request: ProtectRequest, found: Sequence[Found], *, repository: Repository, wait: LockWait) -> None:

    def change(backup: Found) -> None:
        if not request.is_protected:
            protection.unprotect(backup.directory)
            return
        before = protection.read(backup.directory)
        if before is None or request.reason is not None:
            protection.protect(backup.directory, Protection(datetime.now(timezone.utc), request.reason))

    with_lock(found, change, repository=repository, wait=wait)


def _make_immutable(found: Sequence[Found], days: int, *, repository: Repository, wait: LockWait) -> None:
    """Make backups immutable, each with all that it depends on, the oldest first."""
    until = datetime.now(timezone.utc) + timedelta(days=days)
    chains = [immutability.chain(repository.catalogue(backup.uuid).history, backup.id) for backup in found]
    for backup in found:
        immutable.refuse_impossible(backup.directory)

    def change(backup: Found) -> None:
        for each in reversed(chains[found.index(backup)]):
            immutability.make(repository.directory(backup.uuid, each.id), each, until)

    with_lock(found, change, repository=repository, wait=wait)


def with_lock(
    found: Sequence[Found], change: Callable[[Found], None], *, repository: Repository, wait: LockWait
) -> None:
    """Change the backups, each with the lock of its domain: nobody removes them meanwhile.

    Raises BusyError, and ChainError for a backup that was removed a moment ago.
    """
    for uuid in dict.fromkeys(backup.uuid for backup in found):
        with repository.lock(uuid, wait=wait):
            mine = [backup for backup in found if backup.uuid == uuid]
            lookup.find(repository, [backup.id for backup in mine], uuid)
            for backup in mine:
                change(backup)
