"""Read the record of a repository: what backups there are, in which condition, what differs, where the room goes.

libvirt is not asked, but for a name that several domains have had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected
from vbackup.errors import ChainError, UsageError

if TYPE_CHECKING:
    from vbackup.model import Backup
    from vbackup.operations.diff import Difference, DiffRequest
    from vbackup.operations.usage import Usage, UsageRequest
    from vbackup.report import Reporter
    from vbackup.repository.backup_filter import BackupFilter
    from vbackup.repository.catalogue import Broken, Catalogue
    from vbackup.repository.condition import Condition
    from vbackup.stop import Stop


@dataclass(frozen=True)
class DomainRecord:
    """The backups of one domain in the repository."""

    catalogue: Catalogue
    conditions: Mapping[str, Condition]  #: of each backup, by id
    unfinished: Sequence[str] = ()  #: ids of backups that are not committed, running or interrupted
    running: Sequence[str] = ()  #: those of them whose process is at work

    @property
    def uuid(self) -> str:
        """UUID of the domain."""
        return self.catalogue.uuid

    @property
    def name(self) -> str:
        """The name that the domain had last."""
        return self.catalogue.names[-1]

    @property
    def backups(self) -> Sequence[Backup]:
        """The backups, in the order of their commits."""
        return self.catalogue.history.backups

    @property
    def broken(self) -> Sequence[Broken]:
        """Backups that cannot be read, or whose chain is incomplete, each with the reason."""
        return self.catalogue.broken


@dataclass(frozen=True)
class BackupRecord:
    """One backup, and what is known of it."""

    backup: Backup
    condition: Condition
    chains: Mapping[str, Sequence[str]]  #: for each disk (dev) the ids of the backups that hold it, the newest first
    path: Path  #: its directory


class Records(Connected):
    """Calls that only read the repository."""

    def domains(self) -> list[tuple[str, str]]:
        """Return (UUID, last name) of the domains that have backups. Raises StorageError."""
        repository = self.repository
        return [(uuid, repository.name_of(uuid)) for uuid in repository.uuids()]

    def records(self, domain: str | None = None, wanted: BackupFilter | None = None) -> list[DomainRecord]:
        """Return the backups of a domain, or of all domains, sorted by name.

        ``domain``: name, former name or UUID; there can be several of a name. ``wanted``: only these backups; what is
        broken stays, as it may be unknown what it is. Nothing of the images is read.

        Raises DomainNotFoundError, StorageError.
        """
        from vbackup.repository import condition

        repository = self.repository
        found = []
        for uuid in repository.uuids() if domain is None else repository.find_all(domain):
            unfinished, running = repository.unfinished(uuid), repository.running(uuid)
            catalogue = repository.catalogue(uuid, with_chains=False)
            if catalogue.history.backups or catalogue.broken or unfinished:
                known = condition.read(catalogue, repository.path / uuid)
                found.append(DomainRecord(catalogue, known, unfinished, running))
        found.sort(key=lambda one: (one.name, one.uuid))
        if wanted is None or not wanted.is_narrow:
            return found
        narrowed = [_narrowed(one, wanted) for one in found]
        return [one for one in narrowed if one.backups or _has_more(one, wanted)]

    def record(self, domain: str, backup_id: str | None = None, *, reporter: Reporter | None = None) -> BackupRecord:
        """Return one backup, the newest by default, with its condition and its chains.

        Raises DomainNotFoundError, AmbiguousNameError, ChainError if the backup is unknown or its chain incomplete,
        StorageError.
        """
        from vbackup.repository import condition

        repository, uuid = self.repository, self.uuid_of(domain, reporter=reporter)
        catalogue = repository.catalogue(uuid)
        history, backup = catalogue.history, catalogue.find(backup_id)
        chains = {image.dev: [link.backup.id for link in history.links(backup.id, image.dev)] for image in backup.disks}
        known = condition.read(catalogue, repository.path / uuid, [backup])[backup.id]
        return BackupRecord(backup, known, chains, repository.directory(uuid, backup.id))

    def owner_of(self, backup_id: str) -> str:
        """Return the UUID of the domain that has a backup with that id: ids are unique in a domain only.

        Raises ChainError if there is none, UsageError if several domains have one, StorageError.
        """
        repository = self.repository
        owners = [uuid for uuid in repository.uuids() if backup_id in repository.taken_ids(uuid)]
        if not owners:
            raise ChainError(
                f"No backup {backup_id!r} in {repository.place}; 'vbackup list DOMAIN{repository.source_option}' lists"
                " them."
            )
        if len(owners) > 1:
            domains = ", ".join(f"{repository.name_of(uuid)} ({uuid})" for uuid in owners)
            raise UsageError(f"Several domains have a backup {backup_id}: {domains}; give the domain, too.")
        return owners[0]

    def diff(
        self, request: DiffRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> AbstractContextManager[Difference]:
        """Return a context manager that yields what differs between two backups; they stay as they are in its block.

        ``request.domain``: name or UUID. Only block lists are read: a backup of a terabyte takes a second. Raises
        DomainNotFoundError, AmbiguousNameError, and in the block ChainError (a backup is unknown, or a list is missing
        or damaged), DiskError, UsageError (the newest is compared with itself), BusyError.
        """
        from vbackup.operations import diff

        asked = replace(request, domain=self.uuid_of(request.domain, reporter=reporter))
        return diff.run(asked, repository=self.repository, stop=self._stop(stop))

    def usage(self, request: UsageRequest | None = None, *, stop: Stop | None = None) -> Usage:
        """Return where the room of the repository goes, in bytes, and what pruning each backup alone would free.

        ``request.domains``: UUIDs (see ``uuids_of``); None: all, and what belongs to no domain. Raises StorageError,
        InterruptedBySignalError.
        """
        from vbackup.operations import usage

        asked = usage.UsageRequest() if request is None else request
        return usage.run(asked, repository=self.repository, stop=self._stop(stop))


def _narrowed(record: DomainRecord, wanted: BackupFilter) -> DomainRecord:
    """Return the record with what is asked for; broken backups stay, because it may be unknown what they are."""
    from vbackup.repository.history import History

    backups = wanted.backups(record.backups, record.conditions)
    unfinished = wanted.unfinished(record.unfinished, record.running)
    return replace(
        record,
        catalogue=replace(record.catalogue, history=History(backups)),
        unfinished=unfinished,
        running=[one for one in record.running if one in unfinished],
    )


def _has_more(record: DomainRecord, wanted: BackupFilter) -> bool:
    """Return True if the domain has unfinished or unreadable backups that match a state asked for."""
    from vbackup.repository.condition import State

    broken = State.BROKEN in wanted.states and record.catalogue.unreadable
    return bool(wanted.states) and bool(record.unfinished or broken)
