"""Back up domains of the host, and what belongs to running backups and to their traces in QEMU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected, listed
from vbackup.errors import StorageError, UsageError
from vbackup.model import Transport

if TYPE_CHECKING:
    from vbackup.domain.selection import Chosen, Selection
    from vbackup.engine.plan import BackupPlan
    from vbackup.model import Backup
    from vbackup.operations.audit import Audit, AuditRequest
    from vbackup.operations.backup import BackupRequest
    from vbackup.operations.batch import Batch, Result
    from vbackup.operations.forget import ForgetRequest, Forgotten
    from vbackup.operations.recovery import Recovered
    from vbackup.operations.speed import SpeedChanged, SpeedRequest
    from vbackup.report import Reporter
    from vbackup.repository.repository import Repository
    from vbackup.scripts.runner import DomainScripts, Settings
    from vbackup.stop import Stop


@dataclass(frozen=True)
class _BatchOptions:
    """What the calls for several domains have in common; see ``Backups.backup_all``."""

    reporter: Reporter | None
    stop: Stop | None
    total_bytes_s: int | None = None
    scripts: Settings | None = None


class Backups(Connected):
    """Calls that need libvirt, and a domain of its host."""

    def plan(
        self, request: BackupRequest | str, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> BackupPlan:
        """Return what ``backup`` would do, after QEMU has prepared and undone every action of it.

        Nothing is copied, frozen or kept, but an interrupted backup of the domain is finished or undone first, as a
        backup would do it.

        ``request``: as for ``backup``. Raises what ``backup`` raises up to the moment at which the copy begins.
        """
        from vbackup.operations import backup

        with self._host() as host:
            return backup.dry_run(
                _backup_request(request),
                host=host,
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def backup(
        self,
        request: BackupRequest | str,
        *,
        total_speed_bytes_s: int | None = None,
        scripts: Settings | DomainScripts | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Backup:
        """Back up one domain, running or off, and return the backup as it was committed.

        ``request``: the options; a name or UUID is short for ``BackupRequest(name)``, which has the defaults of
        'vbackup backup'. ``total_speed_bytes_s``: limit of all disks together; ``BackupRequest.speed_bytes_s`` is that
        of each. ``scripts``: the user's, which run around the backup (vbackup-scripts(7)); None: none. The reporter
        receives steps, warnings, and the progress of each disk, from this thread.

        Raises a VbackupError, and nothing of the backup is left then; the next one starts from the same base. Among
        them are DomainNotFoundError, HostUnreachableError, UnsuitableError and DiskError (the domain or a disk cannot
        be backed up as it is), BaseError (no increment is possible: ask for a full), BusyError (another backup or job
        is at work: try later), QuiesceError, NoSpaceError and StorageError (of the repository), JobError (QEMU could
        not read or write; its ``dev`` is the disk), ScriptError and UnsafeScriptError, InterruptedBySignalError
        (``stop``).
        """
        from vbackup.operations import backup

        asked, throttle = _backup_request(request), None
        own = self._domain_scripts(scripts, work="backup", domain=asked.domain, reporter=reporter, stop=stop)
        self._expect(asked)
        with own.attended(), self._host() as host, ExitStack() as stack:
            if total_speed_bytes_s is not None:
                from vbackup.engine import total_rate

                total = total_rate.TotalRate(total_speed_bytes_s, at_once=1)
                throttle = stack.enter_context(total.share(job_limit_bytes_s=asked.speed_bytes_s))
            return backup.run(
                asked,
                host=host,
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
                throttle=throttle,
                scripts=own,
            )

    def is_one(self, word: str, request: BackupRequest | None = None) -> bool:
        """Return True if the word can only mean one domain of the host: no pattern, or a domain's exact name.

        ``request``: the options of the backup that follows; what it needs to reach the host is then made meanwhile.
        Raises HostUnreachableError, MonitorError.
        """
        from vbackup.domain import selection

        if request is not None:
            self._expect(request)
        with self._host() as host:
            return selection.is_one(word, host)

    def _expect(self, request: BackupRequest) -> None:
        """Let the first connection be made together with the link by which the data of a backup can come here."""
        if request.transport is not Transport.PATH:
            self._hosts.expect_link()

    def select(self, words: Sequence[str], exclude: Sequence[str] = ()) -> Selection:
        """Return the domains of the host that words name: names, UUIDs and patterns such as "web*".

        What ``exclude`` names or matches is left out. A name that libvirt does not have is selected too, and its backup
        fails. Raises DomainNotFoundError if nothing is selected, HostUnreachableError, ConnectionLostError,
        MonitorError.
        """
        from vbackup.domain import selection

        with self._host() as host:
            return selection.by_words(listed(words), host, listed(exclude))

    def select_all(self, exclude: Sequence[str] = ()) -> Selection:
        """Return all domains of the host that can be backed up, but those that ``exclude`` names or matches.

        What is left out is in the selection, with the reason. Raises DomainNotFoundError if none is left,
        HostUnreachableError, ConnectionLostError, MonitorError.
        """
        from vbackup.domain import selection

        with self._host() as host:
            return selection.all_domains(host, listed(exclude))

    def backup_all(
        self,
        domains: Selection | Sequence[str],
        request: BackupRequest | None = None,
        *,
        parallel: int | None = None,
        total_speed_bytes_s: int | None = None,
        scripts: Settings | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Result[Backup]]:
        """Back up several domains, some at a time; return the backup or the error of each, in their order.

        ``domains``: what ``select`` or ``select_all`` returned, or words for ``select``. ``request``: the options for
        each; its domain is not used. ``parallel``: how many at once (default: 4). ``total_speed_bytes_s``: limit of
        all of them together. ``scripts``: the user's, which run around the backup of each domain, and how they ended is
        in its result. The reporter is called from several threads; one that has the method ``labelled`` (see
        ``Labelling``) is asked for one for each domain, and to another the domain's name is put in front of
        texts and disks.

        An error of one domain is in its result, and the others go on; ``stop`` ends all. Raises DomainNotFoundError if
        words name nothing, HostUnreachableError.
        """
        from vbackup.operations import batch

        options = _BatchOptions(reporter, stop, total_speed_bytes_s, scripts)
        with self._batch(domains, request, options) as (work, chosen):
            return batch.run(work, chosen, parallel=batch.PARALLEL if parallel is None else parallel)

    def backup_group(
        self,
        domains: Selection | Sequence[str],
        request: BackupRequest | None = None,
        *,
        total_speed_bytes_s: int | None = None,
        scripts: Settings | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Result[Backup]]:
        """Back up several domains as they are at one moment, all or none; the rest is as in ``backup_all``.

        If one fails, it has its error, and the others GroupError, and nothing is kept of any.
        """
        from vbackup.operations import batch

        options = _BatchOptions(reporter, stop, total_speed_bytes_s, scripts)
        with self._batch(domains, request, options) as (work, chosen):
            return batch.run_group(work, chosen)

    def plan_all(
        self,
        domains: Selection | Sequence[str],
        request: BackupRequest | None = None,
        *,
        parallel: int | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Result[BackupPlan]]:
        """Return the plan or the error of each domain: what ``backup_all`` would do. Raises what that raises.

        Nothing is copied, frozen or kept; see ``plan``.
        """
        from vbackup.operations import batch

        with self._batch(domains, request, _BatchOptions(reporter, stop)) as (work, chosen):
            return batch.dry_run(work, chosen, parallel=batch.PARALLEL if parallel is None else parallel)

    @contextmanager
    def _batch(
        self, domains: Selection | Sequence[str], request: BackupRequest | None, options: _BatchOptions
    ) -> Iterator[tuple[Batch, Sequence[Chosen]]]:
        """Yield what the backups of several domains share, and the domains. Raises what ``backup_all`` raises."""
        from vbackup.domain import selection
        from vbackup.operations.backup import BackupRequest
        from vbackup.operations.batch import Batch
        from vbackup.scripts import runner

        with self._host() as host:
            selected = (
                domains if isinstance(domains, selection.Selection) else selection.by_words(listed(domains), host)
            )
            work = Batch(
                BackupRequest("") if request is None else request,
                host,
                repository=self.repository,
                reporter=self._labelling(options.reporter),
                stop=self._stop(options.stop),
                total_bytes_s=options.total_bytes_s,
                scripts=runner.Settings() if options.scripts is None else options.scripts,
            )
            yield work, selected.chosen

    def audit(
        self, request: AuditRequest | str, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> Audit:
        """Read data of a domain that should be unchanged since its newest backup, and compare it with the backup.

        ``request``: the options; a name or UUID is short for the defaults. A change that tracking has missed is no
        error, but in the answer: ``Audit.is_good``. Raises what ``backup`` raises before it copies, and ChainError if
        there is no backup to compare with.
        """
        from vbackup.operations import audit

        asked = audit.AuditRequest(request) if isinstance(request, str) else request
        with self._host() as host:
            return audit.run(
                asked,
                host=host,
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def set_speed(self, request: SpeedRequest) -> SpeedChanged:
        """Change the speed of a backup that runs now, in whatever process or thread; return its jobs.

        ``request.repository_id`` None: of backups to any repository. Raises DomainNotFoundError, UnsuitableError (the
        domain is off), NoBackupRunningError, DiskError, MigratingError.
        """
        from vbackup.operations import speed

        with self._host() as host:
            return speed.run(request, host=host)

    def interrupted_uuid_of(self, domain: str) -> str:
        """Return the UUID of a domain that libvirt or the repository knows by that name or UUID.

        One that has no committed backup is among them. Raises DomainNotFoundError, AmbiguousNameError, StorageError,
        HostUnreachableError.
        """
        from vbackup.operations import recovery

        if self._is_uuid(domain):
            return domain
        with self._host() as host:
            return recovery.uuid_of(domain, host, repository=self.repository)

    def recover(
        self,
        domain: str,
        *,
        abort: bool = False,
        dry_run: bool = False,
        presume_dead: bool = False,
        exclusive: bool = False,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Recovered]:
        """Finish or undo the backups of a domain that a dead process has left; return what was done about each.

        The next backup of the domain does it too. ``domain``: name or UUID, in libvirt or the repository. ``abort``:
        undo them, even if they could be finished. ``dry_run``: only say what would be done. ``presume_dead``: the
        process that began one is dead, although this cannot be seen from here. ``exclusive``: no other host uses the
        images of a domain that is off.

        Raises DomainNotFoundError, BusyError (the process is at work), CopiedError, NewerJournalError, StorageError,
        and what ``backup`` raises of domains that cannot be reached.
        """
        from vbackup.operations import recovery

        uuid = self.interrupted_uuid_of(domain)
        with self._host() as host:
            return recovery.run(
                uuid,
                host=host,
                repository=self.repository,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
                abort=abort,
                dry_run=dry_run,
                exclusive=exclusive,
                presume_dead=presume_dead,
            )

    def forget(
        self, request: ForgetRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> Forgotten:
        """Remove a repository's bitmaps from a domain, whose next backup there is a full then; backups stay.

        ``request.repository_id`` is that of this connection's repository; of another, or of one that is gone,
        ``request.is_by_id`` has to say so. Raises UsageError if it does not, DomainNotFoundError, BusyError if a backup
        to the repository may be running. A disk that could not be examined is no error, but in ``Forgotten.unopened``.
        """
        from vbackup.operations import forget

        with self._host() as host:
            return forget.run(
                request,
                host=host,
                repository=self._with_id(request.repository_id, is_by_id=request.is_by_id),
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )

    def _with_id(self, repository_id: str, *, is_by_id: bool) -> Repository | None:
        """Return the repository, whose lock shows whether a backup is running; None if it cannot be opened."""
        try:
            given = self.repository if self.has_repository or not is_by_id else None
        except StorageError:
            if not is_by_id:
                raise
            return None
        if given is not None and given.id == repository_id:
            return given
        if not is_by_id:
            raise UsageError(f"The repository of this connection is not {repository_id}: set is_by_id for another.")
        return None


def _backup_request(request: BackupRequest | str) -> BackupRequest:
    from vbackup.operations.backup import BackupRequest

    return BackupRequest(request) if isinstance(request, str) else request
