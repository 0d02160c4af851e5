"""Back up one domain, running or off: read, plan, stage, freeze, one transaction, commit.

Up to the rename of the stage everything can be undone, and is: the disks' earlier checkpoints have
not been touched, so the retry is the same command. vbackup.operations.restore is the way back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.domain import definition, source
from vbackup.domain.freeze import DEFAULT_LIMIT_S
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.source import Source
from vbackup.engine import base, finish, fleecing, foreign_jobs, leftovers, plan, preparation, unfinished
from vbackup.engine.moment import Alone, Moment
from vbackup.engine.plan import BackupPlan, FleecingAbilities
from vbackup.engine.unfinished import Unfinished
from vbackup.errors import BusyError, DomainGoneError, JobError, QmpError, VbackupError
from vbackup.hooks.events import Operation, events
from vbackup.images import creation, tuning
from vbackup.model import Backup, Compression, GroupMember, Level, Quiesce
from vbackup.operations import recovery
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor, schema
from vbackup.qemu.transaction import prepare_only, send
from vbackup.report import Reporter
from vbackup.repository import journal, manifest
from vbackup.repository.journal import Journal, Step
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop
from vbackup.undo import Undo

if TYPE_CHECKING:
    from vbackup.engine.latency_throttle import Backoff

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackupRequest:
    """What is asked for; the fields are the options of ``vbackup backup``."""

    domain: str  #: name or UUID
    level: Level = Level.AUTO
    disks: tuple[str, ...] = ()  #: only these, if any
    excluded_disks: tuple[str, ...] = ()
    quiesce: Quiesce = Quiesce.AUTO
    freeze_limit_s: int = DEFAULT_LIMIT_S
    speed_bytes_s: int | None = None  #: of each disk's job
    max_latency_ms: float | None = None  #: copy slower while the guest's own requests take longer
    compression: Compression = Compression.NONE
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain
    fleecing: Path | None = None  #: a directory for what the guest overwrites meanwhile (vbackup.engine.fleecing)


@dataclass(frozen=True)
class _Session:
    """What every step works with: the domain's lock is held, the source of its disks is open."""

    handle: DomainHandle
    source: Source
    repository: Repository
    reporter: Reporter
    stop: Stop
    moment: Moment = field(default_factory=Alone)
    throttle: jobs.Throttle | None = None

    @property
    def monitor(self) -> Monitor:
        return self.source.monitor


def run(
    request: BackupRequest,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    moment: Moment | None = None,
    throttle: jobs.Throttle | None = None,
) -> Backup:
    """Make a backup and return it as it was committed.

    ``moment`` has it wait for others at some points; ``throttle`` sets the speed of its jobs instead of the request.
    Raises a VbackupError, whose class says what went wrong; nothing of the backup is left then, and a warning
    tells what could not be undone because QEMU or libvirt could not be reached.
    """
    begun = time.monotonic()
    with _session(request, host=host, repository=repository, reporter=reporter, stop=stop) as opened:
        session = replace(opened, moment=moment or Alone(), throttle=throttle)
        session.source.prepare_freeze(request.quiesce, limit_s=request.freeze_limit_s)
        made = _plan(request, session)
        try:
            backup = _carry_out(made, request, session, begun=begun)
        except JobError as err:
            if _has_ended(session):  # QEMU cancels its jobs as it ends, which is seen first
                raise DomainGoneError(session.handle.name) from err
            raise
        finally:
            detached = _close_detached(made, session)
        _remove_superseded(made, session, detached)
    return backup


def dry_run(
    request: BackupRequest, *, host: Host, repository: Repository, reporter: Reporter, stop: Stop
) -> BackupPlan:
    """Make the plan and let QEMU check every action of it; nothing is copied, frozen or kept.

    The target images are made and the transaction is sent with a trailing abort: QEMU prepares it for
    real and undoes it. Raises what ``run`` would raise up to that point.
    """
    with _session(request, host=host, repository=repository, reporter=reporter, stop=stop) as session:
        made = _plan(request, session)
        with repository.stage(made.domain.uuid, made.id) as stage, Undo(reporter) as undo:
            creation.reserve(preparation.new_images(made, stage))
            preparation.prepare(
                made,
                stage,
                session.monitor,
                fleecing_area=request.fleecing,
                naming=repository.naming,
                undo=undo,
                stop=stop,
            )
            with _locks():
                prepare_only(session.monitor, made.transaction(), qemu=f"domain {made.domain.name}")
    return made


@contextmanager
def _session(
    request: BackupRequest, *, host: Host, repository: Repository, reporter: Reporter, stop: Stop
) -> Iterator[_Session]:
    """Lock the domain, open the source of its disks, and finish or clear away what a dead run left."""
    handle = host.domain(request.domain)
    stop.check()
    wait = LockWait(request.wait_lock_s, reporter, stop)
    with repository.lock(handle.uuid, wait=wait), source.open_source(handle, reporter=reporter) as opened:
        recovery.recover(opened, repository, reporter=reporter, stop=stop)
        stop.check()
        yield _Session(handle, opened, repository, reporter, stop)


def _plan(request: BackupRequest, session: _Session) -> BackupPlan:
    repository, reporter = session.repository, session.reporter
    domain = session.source.domain
    disks, left_out = plan.select(domain, request.disks, request.excluded_disks)
    # First: a job may just be changing the disk's nodes.
    foreign_jobs.refuse_busy(session.monitor, disks)
    nodes = session.source.disk_nodes(disks)
    taken_ids = repository.taken_ids(domain.uuid)
    removed = leftovers.remove_uncommitted(session.monitor, nodes, taken_ids, repository.naming)
    for name in removed:
        reporter.step(f"Removed bitmap {name}, left by a backup that never ended, or by a QEMU that was killed.")
    if removed:
        nodes = session.source.disk_nodes(disks)
    catalogue = repository.catalogue(domain.uuid)
    for broken in catalogue.broken:
        reporter.warning(f"Backup {broken.id} is broken: {broken.reason}")
    choices = []
    for node in nodes:
        choice = base.choose(
            request.level, node, catalogue.history, naming=repository.naming, started=_last_start(session)
        )
        choices.append((node, choice))
        reporter.step(f"Disk {node.disk.dev}: {choice.level.value}, {choice.reason}.")
        if node.disk.encrypted:
            reporter.warning(f"Disk {node.disk.dev} is encrypted on this host; its image in the repository is not.")
    return plan.make(
        request.level,
        domain=domain,
        left_out=left_out,
        choices=choices,
        history=catalogue.history,
        naming=repository.naming,
        token=names.new_token(),
        now=datetime.now(timezone.utc),
        taken_ids=taken_ids,
        compression=_compression(request.compression, session.monitor),
        speed_bytes_s=request.speed_bytes_s,
        fleecing=_fleecing_abilities(request, session),
        node_options=tuning.node_options(is_local=session.handle.host.is_local),
    )


def _compression(asked: Compression, monitor: Monitor) -> Compression:
    """What is asked for; only for ``auto`` QEMU is asked what it has."""
    if asked is not Compression.AUTO:
        return asked
    return tuning.compression(asked, has_zstd="zstd" in schema(monitor).qcow2_compression_types())


def _fleecing_abilities(request: BackupRequest, session: _Session) -> FleecingAbilities | None:
    if request.fleecing is None:
        return None
    if not isinstance(session.source, source.RunningSource):
        session.reporter.step("The domain is off: nothing can slow it down, and the fleecing area is not used.")
        return None
    fleecing.free_bytes(request.fleecing)
    return fleecing.abilities(session.monitor)


def _last_start(session: _Session) -> datetime | None:
    """When the domain was started last, if the hook script is installed and has noted it."""
    if not session.handle.host.is_local:
        return None
    starts = [one.time for one in events(session.handle.uuid) if one.operation is Operation.STARTED]
    return starts[-1] if starts else None


def _carry_out(made: BackupPlan, request: BackupRequest, session: _Session, *, begun: float) -> Backup:
    """Stage, copy, commit."""
    repository = session.repository
    with (
        repository.stage(made.domain.uuid, made.id) as stage,
        Journal(stage.path) as written,
        Undo(session.reporter) as undo,
    ):
        # Asked before the copy: that of a domain that is off does not mind if libvirtd goes away meanwhile.
        files = definition.files(session.handle, made.domain, session.reporter)
        draft = made.draft(
            files={name: stage.write(name, data) for name, data in files.items()},
            versions=definition.versions(session.handle, session.monitor),
        )
        group = session.moment.planned(GroupMember(made.domain.name, made.domain.uuid, made.id))
        work = Unfinished(
            replace(draft, group=group),
            stage,
            written,
            session.source,
            repository,
            session.reporter,
            session.stop,
            stall_s=jobs.stall_limit_s(_slowest_bytes_s(made, session)),
            throttle=session.throttle,
            backoff=_backoff(request, session),
            new_marks=[disk.new_mark.mark for disk in made.disks if disk.new_mark and not disk.new_mark.is_there],
            relied_on_marks=[mark for disk in made.disks for mark in disk.relied_on_marks],
        )
        written.begin(work.draft)
        creation.reserve(preparation.new_images(made, stage))
        unfinished.push_undo_of_bitmaps(work, undo)
        work = _copy(made, request, work, session.moment)
        backup = finish.commit(work, begun=begun, ready=session.moment.copied)
        undo.release()
    return backup


def _backoff(request: BackupRequest, session: _Session) -> Backoff | None:
    """What slows the jobs down for the guest's sake; a domain that is off has none."""
    if request.max_latency_ms is None or not isinstance(session.source, source.RunningSource):
        return None
    from vbackup.engine.latency_throttle import Backoff  # which few ask for

    return Backoff(
        session.monitor,
        limit_ms=request.max_latency_ms,
        ceiling_bytes_s=request.speed_bytes_s,
        reporter=session.reporter,
    )


def _slowest_bytes_s(made: BackupPlan, session: _Session) -> int | None:
    return made.speed_bytes_s if session.throttle is None else session.throttle.slowest_bytes_s(len(made.disks))


def _copy(made: BackupPlan, request: BackupRequest, work: Unfinished, moment: Moment) -> Unfinished:
    """The transaction and its jobs; when this returns QEMU has let go of complete images."""
    monitor, reporter = work.monitor, work.reporter
    with Undo(reporter) as undo:
        identities = {disk.file: journal.identity_of(work.stage.path / disk.file) for disk in made.disks}
        work.journal.write(Step.TARGETS, images=identities)
        preparation.prepare(
            made,
            work.stage,
            monitor,
            fleecing_area=request.fleecing,
            naming=work.repository.naming,
            undo=undo,
            stop=work.stop,
        )
        stopped = work.source.is_guest_stopped()
        space_watch = _space_watch(made, request, work, guest_was_stopped=stopped)
        unfinished.push_undo_of_jobs(work, undo, guest_was_stopped=stopped)
        work.stop.check()
        # Nothing is written to the repository while the guest is frozen: its storage may be slow.
        work.journal.write(Step.MOMENT, time=manifest.iso(datetime.now(timezone.utc)), guest_was_stopped=stopped)
        if work.throttle is not None:
            made = replace(made, speed_bytes_s=work.throttle.first_bytes_s(len(made.disks)))
        transaction = {"actions": made.transaction()}
        moment.ready()
        with work.source.frozen(request.quiesce, reporter, limit_s=request.freeze_limit_s) as freeze, moment.taken():
            now = datetime.now(timezone.utc)
            with _locks():
                send(monitor, transaction)
        moment.sent()
        started = replace(
            work.draft, time=now, consistency=freeze.consistency, frozen_ms=freeze.frozen_ms, group=moment.group
        )
        spread = {} if moment.group is None else {"spread_ms": moment.group.spread_ms}
        work.journal.write(
            Step.STARTED,
            time=manifest.iso(now),
            consistency=freeze.consistency.value,
            frozen_ms=freeze.frozen_ms,
            **spread,
        )
        if freeze.frozen_ms:
            reporter.step(f"Filesystems were frozen for {freeze.frozen_ms} ms.")
        work = _follow(made, space_watch, replace(work, draft=started))
        undo.release()
    return work


def _space_watch(
    made: BackupPlan, request: BackupRequest, work: Unfinished, *, guest_was_stopped: bool
) -> fleecing.SpaceWatch | None:
    if not made.has_fleecing_area:
        return None
    assert request.fleecing is not None
    spares_guest = all(disk.fleecing is not None and disk.fleecing.on_cbw_error for disk in made.disks)
    return fleecing.SpaceWatch.over(
        request.fleecing, is_guest_stopped=None if guest_was_stopped or spares_guest else work.source.is_guest_stopped
    )


def _follow(made: BackupPlan, space_watch: fleecing.SpaceWatch | None, work: Unfinished) -> Unfinished:
    """The jobs to their end; where there is a fleecing area, their beginning too."""
    if space_watch is None:
        return finish.copy(work)
    fleecing.open_views(work.monitor, made.disks)
    send(work.monitor, {"actions": made.copies()})
    try:
        return finish.copy(replace(work, watch=space_watch.check))
    except JobError as err:
        raise space_watch.explain(err) or err from err


@contextmanager
def _locks() -> Iterator[None]:
    """Say what it means that another process has an image open: a raw image is locked by its job only."""
    try:
        yield
    except QmpError as err:
        if err.description.is_of_lock:
            raise BusyError(
                "The domain was started meanwhile, or another program has the image of one of its disks open; run the"
                f" same command again ({err})."
            ) from err
        raise


def _has_ended(session: _Session) -> bool:
    try:
        return isinstance(session.source, source.RunningSource) and not session.handle.is_active()
    except VbackupError as err:
        log.debug("%s", err)
        return False


def _close_detached(made: BackupPlan, session: _Session) -> list[str]:
    """When the jobs are gone: let go of disks that the domain has no more. Returns their dev."""
    if not isinstance(session.source, source.RunningSource):
        return []
    try:
        detached = foreign_jobs.close_detached(
            session.monitor, {disk.dev: disk.node.top.node_name for disk in made.disks}
        )
    except VbackupError as err:
        log.debug("%s", err)  # QEMU is gone, or cannot be asked; the backup has ended as it has
        return []
    for dev in detached:
        session.reporter.step(f"Disk {dev} was detached during the backup.")
    return detached


def _remove_superseded(made: BackupPlan, session: _Session, detached: Collection[str]) -> None:
    """After the commit: the bitmaps that drove the copies go, and those that no later backup starts from.

    What stays only costs memory.
    """
    try:
        history = session.repository.catalogue(made.domain.uuid).history
        nodes = session.source.disk_nodes([disk.node.disk for disk in made.disks if disk.dev not in detached])
        for name in leftovers.remove_superseded(session.monitor, nodes, history, session.repository.naming):
            log.debug("removed bitmap %s", name)
    except DomainGoneError as err:
        log.debug("%s", err)  # the next backup removes them
    except VbackupError as err:
        session.reporter.warning(f"The backup is complete, but superseded bitmaps were not removed: {err}")
