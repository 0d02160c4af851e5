"""Back up several domains with one command: some at a time, or all at one moment. Each has a result of its own.

QEMU does the work, so a few threads are enough: one a domain, which runs vbackup.operations.backup from its beginning
to its end and has a connection to libvirt of its own. Which domains is vbackup.domain.selection's business, the
moment that they share vbackup.engine.group's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from vbackup.domain.host import Host
from vbackup.domain.selection import Chosen
from vbackup.engine.group import MemberRepository, MemberStop, Moments, Turns
from vbackup.engine.plan import BackupPlan
from vbackup.engine.total_rate import Share, TotalRate
from vbackup.errors import DomainNotFoundError, GroupError, InterruptedBySignalError, VbackupError
from vbackup.model import Backup
from vbackup.operations import backup
from vbackup.operations.backup import BackupRequest
from vbackup.report import Labelling, Reporter
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

log = logging.getLogger(__name__)

#: How many domains are backed up at the same time by default. Measured with 20 small ones on two processors: two at a
#: time take 0.6 of the time of one, four 0.45, eight 0.4; and each more has the storage work in one more place.
PARALLEL = 4

T = TypeVar("T", Backup, BackupPlan)


@dataclass(frozen=True)
class Result(Generic[T]):
    """How it went with one domain."""

    domain: Chosen
    duration_s: float
    made: T | None  #: None where it failed
    error: VbackupError | None  #: None where it did not


@dataclass(frozen=True)
class Batch:
    """What the domains have in common."""

    request: BackupRequest  #: for each of them; its ``domain`` is left aside
    host: Host
    repository: Repository
    reporter: Labelling
    stop: Stop
    total_bytes_s: int | None = None  #: of all jobs together; the request's speed is still that of each

    def of(self, domain: Chosen) -> BackupRequest:
        """The request for one domain."""
        return replace(self.request, domain=domain.name)


def run(batch: Batch, domains: Sequence[Chosen], *, parallel: int) -> list[Result[Backup]]:
    """Back up each, at most ``parallel`` at once; the results are in the order of ``domains``.

    Whatever fails is in the result of its domain. After a request to stop no more are begun.
    """
    rate = _rate(batch, at_once=min(parallel, len(domains)))

    def one(domain: Chosen, reporter: Reporter) -> Backup:
        with ExitStack() as stack:
            host = stack.enter_context(batch.host.another())
            done = backup.run(
                batch.of(domain),
                host=host,
                repository=batch.repository,
                reporter=reporter,
                stop=batch.stop,
                throttle=_share(rate, batch, stack),
            )
        return _told(done, reporter)

    return _in_threads(batch, domains, one, threads=parallel)


def dry_run(batch: Batch, domains: Sequence[Chosen], *, parallel: int) -> list[Result[BackupPlan]]:
    """Plan each and have QEMU check it; as ``run``, but nothing is copied, frozen or kept."""

    def one(domain: Chosen, reporter: Reporter) -> BackupPlan:
        with batch.host.another() as host:
            return backup.dry_run(
                batch.of(domain), host=host, repository=batch.repository, reporter=reporter, stop=batch.stop
            )

    return _in_threads(batch, domains, one, threads=parallel)


def run_group(batch: Batch, domains: Sequence[Chosen]) -> list[Result[Backup]]:
    """Back up all at one moment, all or none; the results are in the order of ``domains``.

    Before the moment all are planned and ready; a failure by then means that nothing of any was begun. One that comes
    later undoes all. The error of whoever failed is his own, the others have GroupError. Raises DomainNotFoundError
    for a domain that libvirt does not have.
    """
    for domain in domains:
        if domain.uuid is None:
            batch.host.domain(domain.name)  # says what there is instead
            raise DomainNotFoundError(domain.name, "a moment ago", "run the same command again")
    members = [domain.name for domain in sorted(domains, key=lambda one: one.uuid or "")]
    moments = Moments(members, stop=batch.stop, freeze_limit_s=batch.request.freeze_limit_s)
    turns = Turns(members)
    rate = _rate(batch, at_once=len(domains))

    def one(domain: Chosen, reporter: Reporter) -> Backup:
        stop = MemberStop(moments.meeting, domain.name)
        repository = MemberRepository(
            batch.repository, member=domain.name, turns=turns, meeting=moments.meeting, stop=stop
        )
        try:
            with ExitStack() as stack:
                host = stack.enter_context(batch.host.another())
                done = backup.run(
                    batch.of(domain),
                    host=host,
                    repository=repository,
                    reporter=reporter,
                    stop=stop,
                    moment=moments.member(domain.name),
                    throttle=_share(rate, batch, stack),
                )
            return _told(done, reporter)
        except Exception as err:
            moments.meeting.fail(domain.name, _known(err))
            raise

    return _in_threads(batch, domains, one, threads=len(domains))


def _in_threads(
    batch: Batch, domains: Sequence[Chosen], work: Callable[[Chosen, Reporter], T], *, threads: int
) -> list[Result[T]]:
    def one(domain: Chosen) -> Result[T]:
        begun = time.monotonic()
        reporter = batch.reporter.labelled(domain.name)
        try:
            batch.stop.check()
            made, error = work(domain, reporter), None
        except Exception as err:  # noqa: BLE001 - a fault in one thread is the result of that domain, and no other's
            made, error = None, _known(err)
            # The cause of these is told once for all.
            if not isinstance(error, (GroupError, InterruptedBySignalError)):
                reporter.warning(str(error))
        return Result(domain, round(time.monotonic() - begun, 3), made, error)

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="domain") as pool:
        return list(pool.map(one, domains))


def _told(done: Backup, reporter: Reporter) -> Backup:
    reporter.step(f"Backup {done.id} is complete.")
    return done


def _known(err: Exception) -> VbackupError:
    if isinstance(err, VbackupError):
        return err
    log.debug("unexpected", exc_info=err)
    return VbackupError(f"Unexpected {type(err).__name__}: {err}. This is a fault in vbackup; -v shows where.")


def _rate(batch: Batch, *, at_once: int) -> TotalRate | None:
    return None if batch.total_bytes_s is None else TotalRate(batch.total_bytes_s, at_once=at_once)


def _share(rate: TotalRate | None, batch: Batch, stack: ExitStack) -> Share | None:
    if rate is None:
        return None
    return stack.enter_context(rate.share(job_limit_bytes_s=batch.request.speed_bytes_s))
