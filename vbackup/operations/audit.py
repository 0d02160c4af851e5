"""Audit changed-block tracking: compare what the bitmaps of a domain call unchanged with the newest backup.

A random part of it is read from the disks as they are at one moment (vbackup.engine.audit_copy), and compared with the
block lists of the newest backup (vbackup.repository.audit_comparison); its images are not read. What differs, the next
incremental would not have copied: from then on no backup starts from the checkpoints of that disk, so that its next one
is a full.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vbackup import names
from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import Host
from vbackup.engine import audit_copy, base, foreign_jobs, leftovers, plan, proof
from vbackup.engine.audit_copy import Copied, Limits, Wish
from vbackup.engine.audit_scratch import LocalScratch, RemoteScratch, Scratch
from vbackup.engine.base import Choice
from vbackup.engine.fleecing_area import REMOTE_DIRECTORY
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import (
    DiskError,
    DomainGoneError,
    MalformedError,
    QemuGoneError,
    StorageError,
    UnsuitableError,
    VbackupError,
)
from vbackup.model import DiskNode, Level, NodeBitmap
from vbackup.operations import recovery
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.qemu.stored_bitmap import StoredBitmap
from vbackup.report import Phase, Reporter
from vbackup.repository import audit_comparison, audit_sample, audited, verify
from vbackup.repository.audit_comparison import Compared, Known
from vbackup.repository.audit_sample import Sample
from vbackup.repository.audited import Audited
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BLOCKS
from vbackup.repository.composition import Composition
from vbackup.repository.history import History, image_of
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class AuditRequest:
    """The options of ``vbackup audit``."""

    domain: str  #: name or UUID
    disks: tuple[str, ...] = ()  #: only these, if any
    percent: float = 1.0  #: of what has not changed, how much is read
    max_latency_ms: float | None = None  #: read slower while the guest's own requests take longer
    speed_bytes_s: int | None = None  #: of each disk
    #: directory of the domain's host for what is read; None: the domain's, in the repository, or /var/tmp there
    scratch: Path | None = None
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain
    exclusive: bool = False  #: no other host uses the images of the domain while it is off


@dataclass(frozen=True)
class DiskAudit:
    """The result for one disk."""

    dev: str
    backup: str  #: id of the newest backup, whose block lists were compared
    size_bytes: int
    is_partial: bool  #: older backups of the chain have no block lists: what only they have was left out
    compared: Compared

    @property
    def is_good(self) -> bool:
        """True if all was as the backup says."""
        return not self.compared.wrong

    @property
    def oldest_doubt(self) -> str | None:
        """The id of the oldest backup after which a change was missed, as far as that is known."""
        return min((one.since for one in self.compared.ranges), default=None)


@dataclass(frozen=True)
class NotAudited:
    """A disk that has nothing to audit, and why."""

    dev: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """The result for a domain."""

    domain_name: str
    domain_uuid: str
    time: datetime  #: the moment that was looked at
    disks: tuple[DiskAudit, ...]
    not_audited: tuple[NotAudited, ...]

    @property
    def is_good(self) -> bool:
        """True if nothing was missed in what was read."""
        return all(disk.is_good for disk in self.disks)


@dataclass(frozen=True)
class _Task:
    """A disk to audit."""

    node: DiskNode
    choice: Choice
    known: Known
    is_complete: bool
    sample: Sample

    @property
    def dev(self) -> str:
        return self.node.disk.dev

    @property
    def backup_id(self) -> str:
        assert self.choice.base is not None
        return self.choice.base.id


def run(request: AuditRequest, *, host: Host, repository: Repository, reporter: Reporter, stop: Stop) -> Audit:
    """Audit the domain's disks; if one has changes that were missed, its next backup is a full.

    Raises UnsuitableError if no disk has anything to audit, or one that was asked for has not; ChainError if a block
    list is damaged; NoSpaceError, StorageError for the scratch space; and what vbackup.operations.backup.run raises
    before it copies. Nothing is left in QEMU then.
    """
    handle = host.domain(request.domain)
    stop.check()
    wait = LockWait(request.wait_lock_s, reporter, stop, name=handle.name)
    access = Access(request.exclusive, check=stop.check)
    with (
        repository.lock(handle.uuid, wait=wait),
        source.open_source(handle, reporter=reporter, access=access) as opened,
        ExitStack() as lists,
    ):
        domain = LockedDomain(opened, repository, reporter, stop)
        recovery.recover(domain, abort=False)
        history = repository.catalogue(handle.uuid).history
        tasks, not_audited = _tasks(request, domain, history, lists)
        try:
            moment, results = _audit(tasks, request, history, domain)
        except DomainGoneError as err:
            raise VbackupError(
                f"Domain {handle.name} stopped while it was being audited, so nothing is known. Run the same command"
                " again; it can be off."
            ) from err
    return Audit(handle.name, handle.uuid, moment, tuple(results), tuple(not_audited))


def _tasks(
    request: AuditRequest, domain: LockedDomain, history: History, lists: ExitStack
) -> tuple[list[_Task], list[NotAudited]]:
    selection = plan.select(domain.source.domain, request.disks, ())
    foreign_jobs.refuse_busy(domain.monitor, selection.disks)
    nodes = domain.source.look_at(domain.source.disk_nodes(selection.disks))
    nodes = proof.compared(Level.AUTO, nodes, history, domain)
    tasks, not_audited = [], []
    for node in nodes:
        dev = node.disk.dev
        choice = base.choose(Level.AUTO, node, history, naming=domain.naming)
        if choice.base is None:
            not_audited.append(NotAudited(dev, choice.reason))
            continue
        known, is_complete = _known(node, choice.base.id, history, domain.repository, lists)
        if known is None:
            reason = f"backup {choice.base.id} has no block list; 'vbackup verify' makes one"
            not_audited.append(NotAudited(dev, reason))
            continue
        sample = audit_sample.choose(
            known.composition, size_bytes=known.size_bytes, percent=request.percent, is_complete=is_complete
        )
        tasks.append(_Task(node, choice, known, is_complete, sample))
    _refuse_nothing(request, domain, tasks, not_audited)
    return tasks, not_audited


def _refuse_nothing(
    request: AuditRequest, domain: LockedDomain, tasks: Sequence[_Task], not_audited: Sequence[NotAudited]
) -> None:
    for one in not_audited:
        if one.dev in request.disks:
            raise DiskError(one.dev, f"there is nothing to audit: {one.reason}.")
        domain.reporter.warning(f"Disk {one.dev} is not audited: {one.reason}.")
    if not tasks:
        raise UnsuitableError(
            f"Domain {domain.source.domain.name} has nothing to audit: no disk has a backup with a block list from"
            " which its next one would start. Back it up first."
        )


def _known(
    node: DiskNode, backup_id: str, history: History, repository: Repository, lists: ExitStack
) -> tuple[Known | None, bool]:
    """Open the lists of the chain, as far as it has some; return them, and whether it has all."""
    links = history.links(backup_id, node.disk.dev)
    listed = []
    for link in links:
        if link.image.blocks is None:
            break
        listed.append(lists.enter_context(verify.opened_list(verify.image_path(repository, link), link)))
    if not listed:
        return None, False
    ids = [link.backup.id for link in links[: len(listed)]]
    known = Known(Composition(listed), [*ids, links[-1].backup.id], node.top.virtual_size_bytes)
    return known, len(listed) == len(links)


def _audit(
    tasks: Sequence[_Task], request: AuditRequest, history: History, domain: LockedDomain
) -> tuple[datetime, list[DiskAudit]]:
    """Audit each disk; what was found of one is kept before the next is compared, which may fail or be interrupted."""
    scratch = _scratch(request, domain)
    on_tick = None
    if request.max_latency_ms is not None and domain.source.is_running:
        from vbackup.engine.latency_throttle import LatencyThrottle  # which few ask for

        on_tick = LatencyThrottle(
            domain.monitor,
            limit_ms=request.max_latency_ms,
            ceiling_bytes_s=request.speed_bytes_s,
            reporter=domain.reporter,
        ).on_tick
    limits = Limits(scratch, request.speed_bytes_s, on_tick)
    wishes = [Wish(task.node, task.choice, task.sample) for task in tasks]
    audit_id = names.audit_id(datetime.now(timezone.utc))
    with audit_copy.taken(wishes, domain, limits, audit_id=audit_id) as (moment, copies):
        results, unwritten = [], None
        for task, copied in zip(tasks, copies):
            result = _compared(task, copied, scratch.place, domain)
            results.append(result)
            unwritten = _keep(moment, result, task, history, domain) or unwritten
    if unwritten is not None:
        raise unwritten
    return moment, results


def _scratch(request: AuditRequest, domain: LockedDomain) -> Scratch:
    host = domain.source.handle.host
    in_repository = domain.repository.path / domain.uuid
    if host.is_local or not host.has_link:
        return LocalScratch(request.scratch or in_repository)
    link = host.link(check=domain.stop.check)
    directory = os.fspath(request.scratch or REMOTE_DIRECTORY)
    return RemoteScratch(link, domain.uuid, directory, in_repository, domain.source.is_running)


def _compared(task: _Task, copied: Copied, place: str, domain: LockedDomain) -> DiskAudit:
    total_bytes = task.sample.blocks * BLOCK_BYTES

    def progress(done_bytes: int) -> None:
        domain.reporter.progress(task.dev, Phase.CHECK, min(done_bytes, total_bytes), total_bytes)

    try:
        changed = StoredBitmap(copied.bits_fd, audit_copy.CHANGED)
    except MalformedError as err:
        raise _not_stored(task, place, str(err).rstrip(".")) from err
    with Qcow2Layer(Path(f"/proc/self/fd/{copied.copy_fd}"), opened=_opened) as layer:
        compared = audit_comparison.compare(
            task.known,
            task.sample,
            dirty=lambda number: changed.mask(number * SEGMENT_BLOCKS, SEGMENT_BLOCKS),
            copy=layer,
            check=domain.stop.check,
            progress=progress,
        )
    if compared.missing:
        raise _not_stored(task, place, f"{compared.missing} blocks of {task.sample.blocks} are missing")
    return DiskAudit(task.dev, task.backup_id, task.known.size_bytes, not task.is_complete, compared)


def _not_stored(task: _Task, place: str, reason: str) -> StorageError:
    return StorageError(
        f"Disk {task.dev}: QEMU could not store in {place} all that it read ({reason}); no write of the guest was"
        " lost. Look for a quota or a limit on the size of a file there, and for errors of its storage in the kernel"
        " log, or use another directory with --scratch."
    )


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _keep(moment: datetime, one: DiskAudit, task: _Task, history: History, domain: LockedDomain) -> StorageError | None:
    """Take away the checkpoints of a disk where changes were missed: by the note of the result, and in QEMU.

    Either is enough. The note is first, because QEMU may have ended meanwhile. The warning comes before that: nothing
    that follows, such as a full repository, can suppress it. Return the error if the note could not be written.
    """
    if not one.is_good:
        domain.reporter.warning(_missed(one, domain.source.domain.name))
    unwritten = _unwritten(moment, one, history, domain)
    if not one.is_good:
        try:
            leftovers.remove_bitmaps(domain.monitor, _bitmaps(task.node, history, domain))
        except VbackupError as err:
            reason = "QEMU has ended" if isinstance(err, QemuGoneError) else str(err).rstrip(".")
            remedy = "" if unwritten is None else " Make the next backup with --level full."
            domain.reporter.warning(
                f"Disk {one.dev}: a bitmap that is not trusted any more was not removed: {reason}.{remedy}"
            )
    return unwritten


def _unwritten(moment: datetime, one: DiskAudit, history: History, domain: LockedDomain) -> StorageError | None:
    """Write the result into the repository; return the error if that failed."""
    kept = Audited(
        one.dev,
        moment,
        one.backup,
        is_good=one.is_good,
        clean_bytes=one.compared.clean_data * BLOCK_BYTES,
        read_bytes=one.compared.read_data * BLOCK_BYTES,
        wrong_bytes=one.compared.wrong * BLOCK_BYTES,
        distrusted=[
            backup_id
            for backup_id in _checkpoints(history, one.dev)
            # What an earlier audit has found stays true of the backups that it speaks of.
            if not one.is_good or history.distrust(backup_id, one.dev) is not None
        ],
    )
    try:
        audited.add(domain.repository.path / domain.uuid, [kept])
    except StorageError as err:
        return err
    return None


def _checkpoints(history: History, dev: str) -> list[str]:
    return [one.id for one in history.backups if (image := one.image(dev)) is not None and image.bitmap is not None]


def _bitmaps(node: DiskNode, history: History, domain: LockedDomain) -> list[NodeBitmap]:
    """Return the checkpoints' bitmaps of the disk, on all layers that have them."""
    recorded = {image_of(history.get(each), node.disk.dev).bitmap for each in _checkpoints(history, node.disk.dev)}
    recorded |= history.restored_bitmaps(node.disk.dev)
    return [
        NodeBitmap(layer.node_name, name)
        for layer in node.layers
        for name in sorted(layer.bitmaps)
        if name in recorded and names.repository_of(name) == domain.naming.repository_id
    ]


def _missed(one: DiskAudit, domain_name: str) -> str:
    ranges = one.compared.ranges
    more = f", and {len(ranges) - 1} more" if len(ranges) > 1 else ""
    later = "" if one.oldest_doubt == one.backup else f" Backups after {one.oldest_doubt} may have old data there."
    return (
        f"Disk {one.dev}: {one.compared.wrong * BLOCK_BYTES} bytes have changed since backup {one.oldest_doubt}, and"
        f" changed-block tracking missed it: from byte {ranges[0].start_bytes} on ({ranges[0].length_bytes}"
        f" bytes{more}).{later} The next backup of the disk is a full: make it now. Backups of {domain_name} in other"
        " repositories rely on the same tracking: audit them too."
    )
