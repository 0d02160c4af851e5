"""Look after the backups of a repository: verify, protect, prune, consolidate, check and repair them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected, listed
from vbackup.errors import InterruptedBySignalError, VbackupError

if TYPE_CHECKING:
    from vbackup.operations.adopt import Adopted
    from vbackup.operations.boot_test import Booted, BootRequest
    from vbackup.operations.check import Checked
    from vbackup.operations.consolidation import Consolidated, ConsolidateRequest
    from vbackup.operations.fsck import Checked as CheckedFileSystems
    from vbackup.operations.fsck import FsckRequest
    from vbackup.operations.note import NoteRequest
    from vbackup.operations.protect import Changed, ProtectRequest
    from vbackup.operations.prune import PruneRequest, Pruning
    from vbackup.operations.repair import Repair
    from vbackup.operations.verify import Verified, VerifyRequest
    from vbackup.report import Reporter
    from vbackup.repository.lookup import Found
    from vbackup.repository.merging import Way
    from vbackup.repository.repository import Repository
    from vbackup.stop import Stop


@dataclass(frozen=True)
class Repaired:
    """What was repaired, would be, or could not be, and why domains were left alone."""

    repairs: Sequence[Repair]
    failed: Mapping[str, VbackupError]  #: by the UUID of the domain


class Upkeep(Connected):
    """Calls for backups that are there."""

    def verify(
        self,
        domain: str,
        request: VerifyRequest | None = None,
        *,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Verified:
        """Read the images of a domain's backups, and compare them with their block lists.

        ``request``: which backups, disks, and what part of them (default: all). Damage is no error, but in the answer:
        ``Verified.damaged`` has the ids of the backups that cannot be restored as they were. The result is kept with
        the backups. Raises DomainNotFoundError, AmbiguousNameError, ChainError (an unknown backup), DiskError,
        BusyError, StorageError, InterruptedBySignalError; the next verify goes on where this one was stopped.
        """
        from vbackup.operations import verify

        asked = verify.VerifyRequest() if request is None else request
        uuid = self.uuid_of(domain, reporter=reporter)
        return verify.run(
            asked, uuid, repository=self.repository, reporter=self._reporter(reporter), stop=self._stop(stop)
        )

    def boot_test(
        self,
        domain: str,
        request: BootRequest | None = None,
        *,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Booted:
        """Start a copy of a domain from a backup, that reaches nothing, and see if it boots; it ends with the test.

        ``request``: which backup (default: the newest), and what has to be reached. That a guest does not boot is no
        error, but in the answer, which is kept with the backup. Raises UnsuitableError if the copy cannot be tested on
        this host, and what ``restore`` raises of backups; MonitorError if libvirt does not start it.
        """
        from vbackup.operations import boot_test

        asked = boot_test.BootRequest() if request is None else request
        uuid = self.uuid_of(domain, reporter=reporter)
        with self._host() as host:
            return boot_test.run(
                asked,
                uuid,
                host=host,
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def fsck(
        self,
        domain: str,
        request: FsckRequest | None = None,
        *,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> CheckedFileSystems:
        """Check the file systems in a backup, the newest by default, in libguestfs's appliance.

        Damage is no error, but in the answer, which is kept with the backup. Raises UnsuitableError if nothing can be
        checked, or guestfish is not installed, and what ``restore`` raises of backups.
        """
        from vbackup.operations import fsck

        asked = fsck.FsckRequest() if request is None else request
        uuid = self.uuid_of(domain, reporter=reporter)
        return fsck.run(
            asked, uuid, repository=self.repository, reporter=self._reporter(reporter), stop=self._stop(stop)
        )

    def prune(
        self,
        request: PruneRequest,
        *,
        way: Way | str = "auto",
        max_chain: int | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Pruning:
        """Remove the backups of a domain that no rule keeps; return what became of each, and why.

        ``request.uuid``: name or UUID. ``way``: how the data of a removed backup, on which others depend, goes to them;
        "never" keeps it instead. ``max_chain``: also make fulls, until no disk's chain has more images.

        Raises DomainNotFoundError, AmbiguousNameError, NeededError (a backup to be removed is protected, or needed),
        ChainError, BusyError, NoSpaceError, StorageError, InterruptedBySignalError: what was removed until then is, and
        every backup that is left can be restored. Backups in use stay, which is no error, but in ``Pruning.busy``.
        """
        from vbackup.operations import prune, prune_merges
        from vbackup.repository.merging import Way

        consolidator = None
        if Way(way) is not Way.NEVER:
            consolidator = prune_merges.Consolidation(
                self.repository, Way(way), self._reporter(reporter), self._stop(stop), max_chain=max_chain
            )
        return prune.run(
            replace(request, uuid=self.uuid_of(request.uuid, reporter=reporter)),
            repository=self.repository,
            consolidator=consolidator,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def consolidate(
        self, request: ConsolidateRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> Consolidated:
        """Make backups independent of older ones; all of them stay. ``request.uuid``: name or UUID.

        Raises DomainNotFoundError, AmbiguousNameError, ChainError, BusyError, NoSpaceError, StorageError,
        InterruptedBySignalError; what is not done yet then stays as it was.
        """
        from vbackup.operations import consolidation

        return consolidation.run(
            replace(request, uuid=self.uuid_of(request.uuid, reporter=reporter)),
            repository=self.repository,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def check(
        self, domains: Sequence[str] | None = None, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> Checked:
        """Look through the repository without reading data, or through these domains only.

        What is wrong is no error, but in ``Checked.troubles``, each with its remedy. Raises DomainNotFoundError,
        AmbiguousNameError, StorageError, InterruptedBySignalError.
        """
        from vbackup.operations import check

        uuids = None if domains is None else [self.uuid_of(one, reporter=reporter) for one in listed(domains)]
        return check.run(uuids, repository=self.repository, reporter=self._reporter(reporter), stop=self._stop(stop))

    def repair(
        self,
        domains: Sequence[str] | None = None,
        *,
        copies: Sequence[str | os.PathLike[str] | Repository] = (),
        dry_run: bool = False,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Repaired:
        """Repair what can be repaired of the repository, or of these domains; nothing is removed.

        Interrupted backups are finished or undone first, for which libvirt is asked. ``copies``: copies of the
        repository, from which good files are taken. A domain that cannot be repaired is no error, but in the answer.
        Raises DomainNotFoundError, AmbiguousNameError, StorageError, InterruptedBySignalError.
        """
        from vbackup.operations import check, repair

        repository, labelling, stops = self.repository, self._labelling(reporter), self._stop(stop)
        uuids = None if domains is None else [self.uuid_of(one, reporter=reporter) for one in listed(domains)]
        opened = [_opened(copy) for copy in copies]
        repairs = repair.top(repository, dry_run=dry_run) if uuids is None else []
        failed: dict[str, VbackupError] = {}
        for uuid in check.domains(repository) if uuids is None else uuids:
            of_domain = labelling.labelled(repository.name_of(uuid))
            try:
                repairs += self._recovered(uuid, dry_run=dry_run, reporter=of_domain, stop=stops)
                repairs += repair.run(
                    uuid, repository=repository, copies=opened, reporter=of_domain, stop=stops, dry_run=dry_run
                )
            except InterruptedBySignalError:
                raise
            except VbackupError as err:
                failed[uuid] = err
                of_domain.warning(str(err))
        return Repaired(repairs, failed)

    def _recovered(self, uuid: str, *, dry_run: bool, reporter: Reporter, stop: Stop) -> list[Repair]:
        """Finish or undo the unfinished backups of a domain; libvirt is asked only if there are some."""
        from vbackup.operations import recovery
        from vbackup.operations.repair import Repair

        repository = self.repository
        if not set(repository.unfinished(uuid)) - set(repository.running(uuid)):
            return []
        try:
            with self._host() as host:
                recovered = recovery.run(
                    uuid, host=host, repository=repository, reporter=reporter, stop=stop, dry_run=dry_run
                )
        except InterruptedBySignalError:
            raise
        except VbackupError as err:
            return [Repair(f"The unfinished backups were left: {err}", uuid, is_done=False)]
        verb = "would be" if dry_run else "was"
        return [Repair(f"Backup {one.id} {verb} {one.remedy.done}: {one.reason}.", uuid) for one in recovered]

    def adopt(self, *, reporter: Reporter | None = None) -> Adopted:
        """Give a repository that is a copy a new id, and discard the unfinished backups that belong to the original.

        Raises BusyError, StorageError. ``repository`` of this connection is the adopted one from then on.
        """
        from vbackup.operations import adopt
        from vbackup.repository.repository import Repository

        adopted = adopt.run(self.repository, reporter=self._reporter(reporter))
        self._repository = Repository.open(self.repository.path)
        return adopted

    def protect(
        self, request: ProtectRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> list[Changed]:
        """Protect backups from being removed, or end that (``request.is_protected``); return what they are now.

        ``request.uuid``: name or UUID of the domain; None: of whatever domain. Raises ChainError before anything is
        changed if a backup is unknown, DomainNotFoundError, AmbiguousNameError, BusyError, StorageError.
        """
        from vbackup.operations import protect

        uuid = None if request.uuid is None else self.uuid_of(request.uuid, reporter=reporter)
        return protect.run(
            replace(request, uuid=uuid),
            repository=self.repository,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def note(self, request: NoteRequest, *, reporter: Reporter | None = None, stop: Stop | None = None) -> Found:
        """Give a backup a note, a line of text for people; return where the backup is.

        ``request.uuid``: name or UUID of the domain; None: of whatever domain. Raises ChainError for an unknown backup,
        DomainNotFoundError, AmbiguousNameError, BusyError, StorageError.
        """
        from vbackup.operations import note

        uuid = None if request.uuid is None else self.uuid_of(request.uuid, reporter=reporter)
        return note.run(
            replace(request, uuid=uuid),
            repository=self.repository,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )


def _opened(copy: str | os.PathLike[str] | Repository) -> Repository:
    from pathlib import Path

    from vbackup.repository.repository import Repository

    return Repository.open(Path(copy)) if isinstance(copy, (str, os.PathLike)) else copy
