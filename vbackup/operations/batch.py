"""Back up several domains with one command: some at a time, or all at one moment. Each domain has a separate result.

QEMU does the work, so one thread for each domain is enough; it runs the whole of vbackup.operations.backup, with its
own connection to libvirt. vbackup.domain.selection selects the domains, vbackup.engine.group lets a group share its
moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from vbackup.domain.access import Identity, ImagesInUse
from vbackup.domain.host import Host
from vbackup.domain.selection import Chosen
from vbackup.engine.group import MemberRepository, MemberStop, Moments, Turns
from vbackup.engine.plan import BackupPlan
from vbackup.engine.total_rate import Share, TotalRate
from vbackup.errors import DomainNotFoundError, GroupError, InterruptedBySignalError, VbackupError
from vbackup.files import reported
from vbackup.model import Backup
from vbackup.operations import backup
from vbackup.operations.backup import BackupRequest
from vbackup.report import Labelling, Reporter
from vbackup.repository.repository import Repository
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.scripts.runner import Outcome as ScriptOutcome
from vbackup.stop import Stop

log = logging.getLogger(__name__)

#: How many domains are backed up at the same time by default. Measured with 20 small domains on two processors: two at
#: a time take 0.6 of the time of one at a time, four 0.45, eight 0.4. Each further one makes the storage work in one
#: more place.
PARALLEL = 4

T = TypeVar("T", Backup, BackupPlan)


@dataclass(frozen=True)
class Result(Generic[T]):
    """The backup or plan of one domain, or the error."""

    domain: Chosen
    duration_s: float
    made: T | None  #: None if it failed
    error: VbackupError | None  #: None if it succeeded
    scripts: tuple[ScriptOutcome, ...] = ()  #: how the user's scripts ended
    host: str | None = None  #: what people call its host; None with one host, or if no host has the domain
    uri: str | None = None  #: of that host, as it was given


@dataclass(frozen=True)
class Batch:
    """What the backups of all domains have in common."""

    request: BackupRequest  #: for each domain; its ``domain`` is not used
    host: Host
    repository: Repository
    reporter: Labelling
    stop: Stop
    total_bytes_s: int | None = None  #: limit of all jobs together; the request's speed still limits each job
    scripts: Settings = field(default_factory=Settings)  #: the user's, which run around the backup of each domain
    images_in_use: ImagesInUse = field(default_factory=ImagesInUse)  #: by the backups of this batch
    host_name: str | None = None  #: stands before the name of the domain in what is reported; None: one host is at work

    def label(self, domain: Chosen) -> str:
        """Return what reports call a domain."""
        return domain.name if self.host_name is None else f"{self.host_name}/{domain.name}"

    def of(self, domain: Chosen) -> BackupRequest:
        """Return the request for one domain."""
        return replace(self.request, domain=domain.name)


#: Makes the backup or the plan of a domain; the scripts that it runs are put into the list, where an error leaves them.
Work = Callable[[Chosen, Reporter, "list[DomainScripts]"], T]


def run(batch: Batch, domains: Sequence[Chosen], *, parallel: int) -> list[Result[Backup]]:
    """Back up the domains, at most ``parallel`` at once; return the results in the order of ``domains``.

    An error is in the result of its domain. After a request to stop, no further backup is started.
    """
    rate = total_rate(batch.total_bytes_s, at_once=min(parallel, len(domains)))
    return _in_threads(batch, domains, backing_up(batch, rate), threads=parallel)


def dry_run(batch: Batch, domains: Sequence[Chosen], *, parallel: int) -> list[Result[BackupPlan]]:
    """Like ``run``, but only plan the backups and let QEMU check them; nothing is copied, frozen or kept."""
    return _in_threads(batch, domains, planning(batch), threads=parallel)


def backing_up(batch: Batch, rate: TotalRate | None) -> Work[Backup]:
    """Return what backs up a domain of the batch, for threads; ``rate`` limits all together."""

    def back_up(domain: Chosen, reporter: Reporter, made: list[DomainScripts]) -> Backup:
        with ExitStack() as stack:
            host = stack.enter_context(batch.host.another())
            committed = backup.run(
                batch.of(domain),
                host=host,
                repository=batch.repository,
                reporter=reporter,
                stop=batch.stop,
                throttle=_share(rate, batch, stack),
                images_in_use=batch.images_in_use,
                scripts=_scripts(domain, batch, reporter, batch.stop, made),
            )
        return _reported(committed, reporter)

    return back_up


def planning(batch: Batch) -> Work[BackupPlan]:
    """Return what plans the backup of a domain of the batch, for threads."""

    def plan(domain: Chosen, reporter: Reporter, _made: list[DomainScripts]) -> BackupPlan:
        with batch.host.another() as host:
            return backup.dry_run(
                batch.of(domain),
                host=host,
                repository=batch.repository,
                reporter=reporter,
                stop=batch.stop,
                images_in_use=batch.images_in_use,
            )

    return plan


def run_group(batch: Batch, domains: Sequence[Chosen]) -> list[Result[Backup]]:
    """Back up all domains at one moment, all or none; return the results in the order of ``domains``.

    All are planned and prepared before the moment; if one fails by then, no backup is started. A later failure undoes
    all backups. The domain that failed has its own error, the others have GroupError. Raises DomainNotFoundError for
    a domain that libvirt does not have.
    """
    for domain in domains:
        if domain.uuid is None:
            batch.host.domain(domain.name)  # its error has a hint
            raise DomainNotFoundError(domain.name, "existed a moment ago", "run the same command again")
    # By UUID, the order in which Turns lets them lock: it has to be the same in every group that shares domains.
    members = [domain.name for domain in sorted(domains, key=lambda domain: domain.uuid or "")]
    moments = Moments(members, stop=batch.stop, freeze_limit_s=batch.request.freeze_limit_s)
    turns = Turns(members)
    images_in_use = ImagesInUse(_shared(batch.host, members))
    rate = total_rate(batch.total_bytes_s, at_once=len(domains))

    def back_up(domain: Chosen, reporter: Reporter, made: list[DomainScripts]) -> Backup:
        stop = MemberStop(moments.meeting, domain.name)
        repository = MemberRepository(
            batch.repository, member=domain.name, turns=turns, meeting=moments.meeting, stop=stop
        )
        try:
            with ExitStack() as stack:
                host = stack.enter_context(batch.host.another())
                committed = backup.run(
                    batch.of(domain),
                    host=host,
                    repository=repository,
                    reporter=reporter,
                    stop=stop,
                    moment=moments.member(domain.name),
                    throttle=_share(rate, batch, stack),
                    images_in_use=images_in_use,
                    scripts=_scripts(domain, batch, reporter, stop, made),
                )
            return _reported(committed, reporter)
        except Exception as err:
            moments.meeting.fail(domain.name, _known(err))
            raise

    return _in_threads(batch, domains, back_up, threads=len(domains))


def _shared(host: Host, members: Sequence[str]) -> Mapping[Identity, Collection[str]]:
    """Return the members that have each image, of the images that several members have that are off.

    Known before the first of them opens any, since all of them are open at the same time.
    """
    from vbackup.domain import offline  # a running domain does without a storage daemon

    users: dict[Identity, set[str]] = {}
    for name in members:
        with suppress(VbackupError):  # the backup of the domain reports it
            handle = host.domain(name)
            for identity in offline.identities(handle):
                users.setdefault(identity, set()).add(handle.name)
    return {identity: names for identity, names in users.items() if len(names) > 1}


def _in_threads(batch: Batch, domains: Sequence[Chosen], work: Work[T], *, threads: int) -> list[Result[T]]:
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="domain") as pool:
        return list(pool.map(lambda domain: result_of(batch, domain, work), domains))


def result_of(batch: Batch, domain: Chosen, work: Work[T]) -> Result[T]:
    """Do the work for one domain, and return what became of it, whatever that is."""
    started = time.monotonic()
    reporter, made = batch.reporter.labelled(batch.label(domain)), list[DomainScripts]()
    try:
        batch.stop.check()
        outcome, error = work(domain, reporter, made), None
    except Exception as err:  # noqa: BLE001 - a bug that shows in one thread must not end the other backups
        outcome, error = None, _known(err)
        # The cause of these errors is reported once for all domains.
        if not isinstance(error, (GroupError, InterruptedBySignalError)):
            reporter.warning(str(error))
    scripts = tuple(ended for one in made for ended in one.outcomes)
    return Result(domain, round(time.monotonic() - started, 3), made=outcome, error=error, scripts=scripts)


def _reported(committed: Backup, reporter: Reporter) -> Backup:
    reporter.step(f"Backup {committed.id} is complete.")
    return committed


def _known(err: Exception) -> VbackupError:
    if not isinstance(err, VbackupError):
        log.debug("unexpected", exc_info=err)
    return reported(err)


def _scripts(domain: Chosen, batch: Batch, reporter: Reporter, stop: Stop, made: list[DomainScripts]) -> DomainScripts:
    made.append(DomainScripts(batch.scripts, reporter=reporter, stop=stop, work="backup", domain=domain.name))
    return made[-1]


def total_rate(total_bytes_s: int | None, *, at_once: int) -> TotalRate | None:
    """Return what keeps to a limit in bytes per second for all jobs of ``at_once`` backups; None is no limit."""
    return None if total_bytes_s is None else TotalRate(total_bytes_s, at_once=at_once)


def _share(rate: TotalRate | None, batch: Batch, stack: ExitStack) -> Share | None:
    if rate is None:
        return None
    return stack.enter_context(rate.share(job_limit_bytes_s=batch.request.speed_bytes_s))
