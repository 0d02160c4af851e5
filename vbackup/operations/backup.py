"""Back up one domain, running or off. The functions here follow the ten steps in README.md (How it works).

Up to the rename of the stage everything can be undone, and is: the disks' earlier checkpoints have not been touched, so
the retry is the same command. vbackup.operations.restore is the way back.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.domain import definition, source
from vbackup.domain.access import Access, ImagesInUse
from vbackup.domain.freeze import DEFAULT_LIMIT_S
from vbackup.domain.host import DomainHandle, Host
from vbackup.engine import delivery as delivery_
from vbackup.engine import finish, fleecing, leftovers, preparation, survey
from vbackup.engine.delivery import Delivery
from vbackup.engine.finish import Following
from vbackup.engine.fleecing import SpaceWatch
from vbackup.engine.fleecing_area import REMOTE_DIRECTORY, Area, LocalArea, RemoteArea
from vbackup.engine.moment import Alone, Moment
from vbackup.engine.plan import BackupPlan, FleecingAbilities, Selection, Wishes
from vbackup.engine.unfinished import LockedDomain, Unfinished
from vbackup.errors import (
    BaseError,
    BusyError,
    CorruptImageError,
    DiskError,
    DomainGoneError,
    JobError,
    LinkLostError,
    QmpError,
    StorageDaemonGoneError,
    StorageError,
    UnsuitableError,
    VbackupError,
    domain_argument,
)
from vbackup.images import creation, tuning
from vbackup.model import Backup, Compression, DiskNode, GroupMember, Level, Quiesce, Transport
from vbackup.operations import documents, freeze_scripts, recovery, remote_side, saved_machine, standby
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor, schema
from vbackup.qemu.transaction import prepare_only, send, tuned
from vbackup.report import Reporter
from vbackup.repository import hosts, notes
from vbackup.repository.history import History
from vbackup.repository.journal import Journal
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository, Stage
from vbackup.scripts import runner
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import DomainScripts
from vbackup.sessions import store as sessions
from vbackup.stop import Stop
from vbackup.undo import Undo

if TYPE_CHECKING:
    from vbackup.engine.latency_throttle import LatencyThrottle
    from vbackup.images.target_tls import TlsPlace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackupRequest:
    """The options of ``vbackup backup``."""

    domain: str  #: name or UUID
    level: Level = Level.AUTO
    full_every_s: float | None = None  #: with level auto: the age of the newest full from which on a new one is made
    disks: tuple[str, ...] = ()  #: only these, if any
    excluded_disks: tuple[str, ...] = ()
    quiesce: Quiesce = Quiesce.AUTO
    freeze_limit_s: int = DEFAULT_LIMIT_S
    speed_bytes_s: int | None = None  #: of each disk's job
    max_latency_ms: float | None = None  #: copy slower while the guest's own requests take longer
    compression: Compression = Compression.NONE
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain
    allow_reflink: bool = False  #: images may share data with the disks, where the filesystem can do that
    fleecing: Path | None = None  #: the fleecing area: a directory of the domain's host (vbackup.engine.fleecing)
    no_fleecing: bool = False  #: not even where it is the default: if the data comes by SSH
    transport: Transport = Transport.AUTO  #: how the data comes here from another host
    tls: TlsPlace | None = None  #: where TLS is spoken, with Transport.TLS
    exclusive: bool = False  #: no other host uses the images of the domain while it is off
    note: str | None = None  #: for people (vbackup.repository.notes)
    with_media: bool = False  #: small media in CD-ROM and floppy drives belong to it
    falls_back: bool = False  #: where the level has no base, the backup is a full
    until: datetime | None = None  #: it is not begun at this time or later


@dataclass(frozen=True)
class _Run:
    """One run of the command: what was asked for, where, and what it waits for."""

    request: BackupRequest
    domain: LockedDomain
    moment: Moment
    throttle: jobs.Throttle | None
    scripts: DomainScripts
    delivery: Delivery | None = None
    area: Area | None = None  #: the fleecing area that is used

    def slowest_bytes_s(self, disks: int) -> int | None:
        """Return the lowest lasting speed of each of ``disks`` jobs, in bytes per second; None is no limit."""
        return self.request.speed_bytes_s if self.throttle is None else self.throttle.slowest_bytes_s(disks)

    def throttled(self, backup_plan: BackupPlan) -> BackupPlan:
        """Return the plan with the speed that its jobs start with."""
        if self.throttle is None:
            return backup_plan
        return replace(backup_plan, speed_bytes_s=self.throttle.first_bytes_s(len(backup_plan.disks)))


def run(
    request: BackupRequest,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    moment: Moment | None = None,
    throttle: jobs.Throttle | None = None,
    images_in_use: ImagesInUse | None = None,
    scripts: DomainScripts | None = None,
    delivery: Delivery | None = None,
) -> Backup:
    """Make a backup and return it as it was committed.

    ``moment`` makes it wait for others at some points; ``throttle`` sets the speed of its jobs instead of the request;
    ``images_in_use`` has what other backups of the same command have open; ``scripts`` are the user's, which run around
    it and know afterwards how each of them ended. With ``delivery`` the backup is sent and not committed.
    Raises a VbackupError, whose class says what went wrong (ScriptError: a script stopped it); nothing of the backup is
    left then, and a warning reports what could not be undone because QEMU or libvirt could not be reached.
    """
    begun = time.monotonic()
    _refuse_late(request)
    access = _access(request, images_in_use, stop)
    scripts = scripts or runner.none(reporter=reporter, stop=stop, work="backup", domain=request.domain)
    scripts.know(repository=os.fspath(repository.path.absolute()))
    moment = moment or Alone()
    with scripts.attended(failed=moment.failed):
        handle = host.domain(request.domain)
        scripts.of_domain(handle.name, handle.uuid, uri=host.real_uri)
        with _locked(handle, request, access, repository=repository, reporter=reporter, stop=stop) as domain:
            backup = _backed_up(_Run(request, domain, moment, throttle, scripts, delivery), begun=begun)
    scripts.after(ScriptPhase.POST_BACKUP, documents.backup(backup))
    return backup


def _refuse_late(request: BackupRequest) -> None:
    """Raise BusyError if the time in which the backup may begin is over."""
    if request.until is not None and datetime.now(timezone.utc) >= request.until:
        raise BusyError(
            f"The backup of domain {request.domain} was not begun, as the time for that ended at"
            f" {request.until.astimezone():%Y-%m-%d %H:%M:%S}."
        )


def _backed_up(this: _Run, *, begun: float) -> Backup:
    """Plan the backup of a domain that is locked, make it, and remove what it supersedes."""
    request, domain = this.request, this.domain
    domain.source.prepare_freeze(request.quiesce, limit_s=request.freeze_limit_s)
    this = replace(this, area=_area(request, domain))
    backup_plan = _planned(request, domain, this.area)
    this.scripts.know(backup_id=backup_plan.id, level=backup_plan.level.value)
    if this.scripts.has(ScriptPhase.PRE_BACKUP):  # they can take minutes
        this.scripts.before(ScriptPhase.PRE_BACKUP, documents.plan(backup_plan))
        survey.refuse_changed(backup_plan, domain)
    try:
        backup = _make(backup_plan, this, begun=begun)
    except (JobError, QmpError) as err:
        # QEMU cancels its jobs as it ends, which is seen first.
        if isinstance(err, JobError) and domain.source.has_ended():
            raise DomainGoneError(domain.source.handle.name) from err
        _refuse_lost(err, domain)
        _refuse_corrupt(err, backup_plan, domain)
        raise
    except StorageError as err:
        _refuse_lost(err, domain)
        raise
    finally:
        nodes = {disk.dev: disk.node.top.node_name for disk in backup_plan.disks}
        detached = domain.source.close_detached(nodes)
        for dev in detached:
            domain.reporter.step(f"Disk {dev} was detached during the backup.")
    committed = backup_plan.history.with_committed(backup)
    # What is not committed is a base as well as what it may still fall back to.
    histories = [committed] if this.delivery is None else [committed, backup_plan.history]
    # Nor is what another machine with this UUID has made superseded by it, or supersedes what this one has.
    own = hosts.alone(committed, backup.host) if backup.host is not None else None
    _remove_superseded(backup_plan, [*histories, *([own] if own is not None else [])], domain, detached)
    return backup


def _refuse_lost(failed: VbackupError, domain: LockedDomain) -> None:
    """Raise what QEMU only sees as an I/O error: the link is lost, or the server of the images has ended."""
    try:
        if domain.served is not None:
            domain.served.server.refuse_ended()
        if domain.link is not None:
            domain.link.stat("/")
    except (LinkLostError, StorageDaemonGoneError) as err:
        raise err from failed


def _refuse_corrupt(failed: JobError | QmpError, backup_plan: BackupPlan, domain: LockedDomain) -> None:
    """Raise CorruptImageError if QEMU found the image of the disk, or of one of the disks, corrupt meanwhile."""
    devs = {failed.dev} if isinstance(failed, JobError) else {disk.dev for disk in backup_plan.disks}
    try:
        domain.source.disk_nodes([disk.node.disk for disk in backup_plan.disks if disk.dev in devs])
    except CorruptImageError as err:
        raise err from failed
    except VbackupError as err:
        log.debug("%s", err)


def dry_run(
    request: BackupRequest,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    images_in_use: ImagesInUse | None = None,
) -> BackupPlan:
    """Make the plan and let QEMU check every action of it; nothing is copied, frozen or kept.

    The target images are made and the transaction is sent with a trailing abort: QEMU prepares it for real and undoes
    it. Raises what ``run`` would raise up to that point.
    """
    access = _access(request, images_in_use, stop)
    handle = host.domain(request.domain)
    with _locked(handle, request, access, repository=repository, reporter=reporter, stop=stop) as domain:
        area = _area(request, domain)
        backup_plan = _plan(request, domain, area, is_dry_run=True)
        with repository.stage(domain.uuid, backup_plan.id) as stage, Undo(reporter) as undo:
            creation.reserve(preparation.new_images(backup_plan, stage))
            backup_plan = preparation.prepare(backup_plan, stage, domain, fleecing_area=area, undo=undo)
            with _refusals_of_lock(domain):
                tuned(
                    lambda actions: prepare_only(domain.monitor, actions, qemu=f"domain {backup_plan.domain.name}"),
                    backup_plan.transaction(),
                )
    return backup_plan


def _access(request: BackupRequest, images_in_use: ImagesInUse | None, stop: Stop) -> Access:
    return Access(request.exclusive, images_in_use=images_in_use or ImagesInUse(), check=stop.check)


@contextmanager
def _locked(
    handle: DomainHandle,
    request: BackupRequest,
    access: Access,
    *,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> Iterator[LockedDomain]:
    """Lock the domain, open its disks, and finish or undo what a dead run left."""
    standby.refuse_backup(handle)
    _end_expired_sessions(handle, reporter)
    stop.check()
    wait = LockWait(request.wait_lock_s, reporter, stop, name=handle.name)
    with ExitStack() as stack:
        stack.enter_context(repository.lock(handle.uuid, wait=wait))
        opened = stack.enter_context(source.open_source(handle, reporter=reporter, access=access))
        domain = LockedDomain(opened, repository, reporter, stop)
        transport = remote_side.chosen(request.transport, handle.host, repository, stop=stop)
        if transport is not Transport.PATH:
            if transport is Transport.TLS and opened.is_running:
                assert request.tls is not None
                serving = remote_side.served_by_tls(request.tls, domain, reporter, check=stop.check)
            else:  # a domain that is off has no QEMU, and no guest that has to wait
                serving = remote_side.served(opened, reporter, stop=stop)
            served = stack.enter_context(serving)
            domain = replace(domain, served=served, link=handle.host.link(check=stop.check))
        if not repository.locks(handle.uuid):
            reporter.warning(
                f"The filesystem of {repository.path} does not lock files (flock), so vbackup tells by their journals"
                " whether other backups are being made. Do not start two backups of one domain at the same time."
            )
        recovery.recover(domain, abort=False)
        standby.warn_taken_over(handle, repository, reporter)
        stop.check()
        yield domain


def _end_expired_sessions(handle: DomainHandle, reporter: Reporter) -> None:
    """End pull sessions of the domain that nobody has ended: what the guest overwrites goes to their scratch images."""
    if sessions.may_have(handle.uuid):
        from vbackup.operations import session_recovery  # which few domains need

        session_recovery.end_expired(handle, reporter=reporter)


# 1 and 2: what there is, and what each disk starts from


def _planned(request: BackupRequest, domain: LockedDomain, area: Area | None) -> BackupPlan:
    try:
        return _plan(request, domain, area, is_dry_run=False)
    except BaseError as err:
        if not request.falls_back:
            raise
        domain.reporter.warning(f"{err} This backup is a full, in place of the {request.level.value}.")
        return _plan(replace(request, level=Level.FULL), domain, area, is_dry_run=False)


def _plan(request: BackupRequest, domain: LockedDomain, area: Area | None, *, is_dry_run: bool) -> BackupPlan:
    selection = survey.select(domain, request.disks, request.excluded_disks)
    abilities = _fleecing_abilities(area, selection, domain, is_asked_for=request.fleecing is not None)
    return survey.plan_of(selection, domain, _wishes(request, abilities, domain), is_dry_run=is_dry_run)


def _wishes(request: BackupRequest, abilities: FleecingAbilities | None, domain: LockedDomain) -> Wishes:
    return Wishes(
        request.level,
        compression=_compression(
            request.compression, domain.monitor if domain.served is None else domain.served.server.monitor
        ),
        speed_bytes_s=request.speed_bytes_s,
        fleecing=abilities,
        node_options=tuning.node_options(is_local=domain.source.handle.host.is_local),
        is_served=domain.served is not None,
        allow_reflink=request.allow_reflink,
        full_every_s=request.full_every_s if request.level is Level.AUTO else None,
    )


def _compression(asked: Compression, monitor: Monitor) -> Compression:
    """Return what is asked for; only for ``auto`` QEMU is asked what it has."""
    if asked is not Compression.AUTO:
        return asked
    return tuning.compression(asked, has_zstd="zstd" in schema(monitor).qcow2_compression_types())


def _area(request: BackupRequest, domain: LockedDomain) -> Area | None:
    """Return the fleecing area: the one that is asked for, or one on the hypervisor if the data comes by SSH."""
    directory = request.fleecing
    if directory is None and domain.link is not None and not request.no_fleecing:
        directory = REMOTE_DIRECTORY
    if directory is None:
        return None
    if domain.link is None:
        return LocalArea(directory)
    return RemoteArea(domain.link, domain.uuid, os.fspath(directory))


def _fleecing_abilities(
    area: Area | None, selection: Selection, domain: LockedDomain, *, is_asked_for: bool
) -> FleecingAbilities | None:
    """Return what QEMU can do for fleecing, None without it; refuse what it would not survive.

    Where it is only the default, a backup without it is better than none.
    """
    if area is None:
        return None
    if not domain.source.is_running:
        if is_asked_for:
            domain.reporter.step("The domain is off: nothing can slow it down, and the fleecing area is not used.")
        return None
    try:
        area.free_bytes()
        abilities = fleecing.abilities(domain.monitor)
        fleecing.refuse_iothreads(domain.monitor, selection.disks, abilities)
    except (DiskError, StorageError, UnsuitableError) as err:
        if is_asked_for:
            raise
        domain.reporter.warning(
            f"The guest can be slowed down by the network: no fleecing area on its host is used. {err}"
        )
        return None
    return abilities


# 3 to 8: images, freeze, transaction, copy, commit


def _make(backup_plan: BackupPlan, this: _Run, *, begun: float) -> Backup:
    domain = this.domain
    with (
        domain.repository.stage(domain.uuid, backup_plan.id) as stage,
        Journal(stage.path) as written,
        Undo(domain.reporter) as undo,
    ):
        planned = _draft(backup_plan, stage, this)
        if domain.repository.name_of(domain.uuid) != planned.draft.domain_name:
            # 'vbackup recover NAME' finds it also if libvirt has lost the domain by then.
            domain.repository.remember_name(domain.uuid, planned.draft.domain_name)
        written.begin(planned.draft)
        domain.repository.refuse_live_writers(domain.uuid, but=backup_plan.id)  # begun meanwhile, past a lock
        creation.reserve(preparation.new_images(backup_plan, stage))
        planned.push_undo_of_bitmaps(undo)
        with _guarded(domain), Undo(domain.reporter) as undo_in_qemu:
            written.targets([disk.file for disk in backup_plan.disks], served=domain.served is not None)
            backup_plan = preparation.prepare(backup_plan, stage, domain, fleecing_area=this.area, undo=undo_in_qemu)
            guest_was_stopped = domain.source.is_guest_stopped()
            watch = _space_watch(backup_plan, this)
            planned.push_undo_of_jobs(undo_in_qemu, guest_was_stopped=guest_was_stopped)
            backup_plan = this.throttled(backup_plan)
            domain.source.mark_devices(
                [disk.node.disk for disk in backup_plan.disks if disk.node.chain.device_mark is None]
            )
            with domain.source.unchanged():
                started = _start(backup_plan, planned, this, written, guest_was_stopped=guest_was_stopped)
                started = survey.with_chains(backup_plan, started)
                copied = _copy(backup_plan, started, this, written, watch)
            undo_in_qemu.release()
        if this.delivery is None:
            backup = finish.commit(copied, written, begun=begun, ready=this.moment.copied)
        else:
            backup = delivery_.deliver(copied, written, this.delivery, begun=begun)
        undo.release()
    return backup


def _draft(backup_plan: BackupPlan, stage: Stage, this: _Run) -> Unfinished:
    """Return the backup as it is planned, with the files that are no images in the stage."""
    domain, handle = this.domain, this.domain.source.handle
    # Asked before the copy, so that a domain that is off does not need libvirtd until the end.
    further = definition.further(
        handle,
        backup_plan.domain,
        domain.monitor,
        is_running=domain.source.is_running,
        with_media=this.request.with_media,
    )
    # A full stands alone. Whatever an increment shares, it depends on the backups before it anyway.
    earlier = backup_plan.history.backups[-1] if backup_plan.level is Level.INCREMENTAL else None
    machine = saved_machine.save(
        further, stage, earlier=earlier, repository=domain.repository, reporter=domain.reporter, stop=domain.stop
    )
    draft = backup_plan.draft(
        files={name: stage.write(name, data) for name, data in further.files.items()},
        versions=definition.versions(handle, domain.monitor),
    )
    draft = replace(saved_machine.with_machine(draft, machine, further), host=definition.host_of(handle))
    if this.request.note is not None:
        stage.write(notes.NOTE, notes.data(this.request.note))
    group = this.moment.planned(GroupMember(draft.domain_name, draft.domain_uuid, draft.id))
    marks = [disk.new_mark for disk in backup_plan.disks if disk.new_mark is not None]
    return Unfinished(
        domain,
        replace(draft, group=group),
        stage,
        new_marks=[mark.mark for mark in marks if not mark.is_there],
        relied_on_marks=[mark for disk in backup_plan.disks for mark in disk.relied_on_marks],
    )


def _start(
    backup_plan: BackupPlan, planned: Unfinished, this: _Run, written: Journal, *, guest_was_stopped: bool
) -> Unfinished:
    """Freeze, send the transaction, thaw; return the backup with the moment it is of."""
    domain = this.domain
    domain.stop.check()
    limit_s = this.request.freeze_limit_s
    domain.source.prepare_freeze(this.request.quiesce, limit_s=limit_s)  # resumed since
    # Nothing is written to the repository while the guest is frozen: its storage may be slow.
    written.moment(
        datetime.now(timezone.utc), guest_was_stopped=guest_was_stopped, freeze_mark=domain.source.freeze_mark
    )
    transaction = backup_plan.transaction()
    this.moment.ready()
    if this.moment.group is not None:  # the scripts of another member may have taken minutes
        survey.refuse_changed(backup_plan, domain)
    with (
        freeze_scripts.around(this.scripts, documents.plan(backup_plan), limit_s=limit_s) as frozen,
        domain.source.frozen(this.request.quiesce, domain.reporter, link=domain.link) as freeze,
    ):
        frozen(freeze)
        with this.moment.taken():
            now = datetime.now(timezone.utc)
            with _refusals_of_lock(domain):
                tuned(lambda actions: send(domain.monitor, {"actions": actions}), transaction)
    this.moment.sent()
    draft = replace(
        planned.draft,
        time=now,
        consistency=freeze.consistency,
        frozen_ms=freeze.frozen_ms,
        group=this.moment.group,
    )
    written.started(draft)
    if freeze.frozen_ms:
        domain.reporter.step(f"Filesystems were frozen for {freeze.frozen_ms} ms.")
    return replace(planned, draft=draft)


def _guarded(domain: LockedDomain) -> AbstractContextManager[None]:
    """Have the helper undo in QEMU what the block leaves there if the link is lost."""
    if domain.link is None or not domain.source.is_running:  # a storage daemon ends with the link
        return nullcontext()
    return domain.link.guarded(domain.uuid, jobs=domain.naming.prefix, nodes=domain.naming.prefix)


@contextmanager
def _refusals_of_lock(domain: LockedDomain) -> Iterator[None]:
    """Say what it means that another process has an image open: a raw image is locked by its job only."""
    try:
        yield
    except QmpError as err:
        if err.description.is_of_lock:
            raise domain.source.locked_out() from err
        raise


def _copy(
    backup_plan: BackupPlan, started: Unfinished, this: _Run, written: Journal, watch: SpaceWatch | None
) -> Unfinished:
    """Follow the jobs until all have ended well; with a fleecing area, start them first."""
    monitor = this.domain.monitor
    following = Following(
        stall_s=jobs.stall_limit_s(this.slowest_bytes_s(len(backup_plan.disks))),
        throttle=this.throttle,
        latency_throttle=_latency_throttle(this),
    )
    if watch is None:
        return finish.copy(started, written, following)
    fleecing.open_views(monitor, backup_plan.disks)
    with _refusals_of_lock(this.domain):
        tuned(lambda actions: send(monitor, {"actions": actions}), backup_plan.copies())
    try:
        return finish.copy(started, written, replace(following, watch=watch.paced()))
    except JobError as err:
        raise watch.explain(err) or err from err


def _latency_throttle(this: _Run) -> LatencyThrottle | None:
    """Return what slows the jobs down for the guest's sake; a domain that is off has no guest."""
    if this.request.max_latency_ms is None or not this.domain.source.is_running:
        return None
    from vbackup.engine.latency_throttle import LatencyThrottle  # which few ask for

    return LatencyThrottle(
        this.domain.monitor,
        limit_ms=this.request.max_latency_ms,
        ceiling_bytes_s=this.request.speed_bytes_s,
        reporter=this.domain.reporter,
    )


def _space_watch(backup_plan: BackupPlan, this: _Run) -> SpaceWatch | None:
    if not backup_plan.has_fleecing_area:
        return None
    assert this.area is not None
    return SpaceWatch.over(this.area)


# 9: what no later backup starts from


def _remove_superseded(
    backup_plan: BackupPlan, histories: Sequence[History], domain: LockedDomain, detached: Collection[str]
) -> None:
    """Remove the bitmaps that drove the copies, and those that no later backup starts from, by any of the histories.

    What stays only costs memory.
    """
    try:
        nodes = domain.source.disk_nodes([disk.node.disk for disk in backup_plan.disks if disk.dev not in detached])
        for name in leftovers.remove_superseded(domain.monitor, nodes, histories, domain.naming):
            log.debug("removed bitmap %s", name)
        _report_other_places(nodes, histories, domain)
    except DomainGoneError as err:
        log.debug("%s", err)  # the next backup removes them
    except VbackupError as err:
        domain.reporter.warning(f"The backup is complete, but superseded bitmaps were not removed: {err}")


def _report_other_places(nodes: Sequence[DiskNode], histories: Sequence[History], domain: LockedDomain) -> None:
    bases = {bitmap for node in nodes for history in histories for bitmap in history.base_bitmaps(node.disk.dev)}
    others = [name for name, parsed in leftovers.of_other_places(nodes, domain.naming).items() if parsed not in bases]
    if others:
        remove = domain.source.handle.host.command(
            f"vbackup bitmap remove {domain_argument(domain.source.domain.name)} NAME"
        )
        domain.reporter.step(
            f"Bitmaps of a copy of this repository stay, or of this one before it was moved: {', '.join(others)}. If"
            f" there is no copy, '{remove}' removes each."
        )
