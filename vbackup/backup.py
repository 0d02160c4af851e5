"""Back up one domain, running or off: read, plan, stage, freeze, one transaction, commit.

Up to the rename of the stage everything can be undone, and is: the disks' earlier checkpoints have
not been touched, so the retry is the same command. vbackup.restore is the way back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import vbackup
from vbackup import chain, checkpoint, job, plan, qemu_img, source, target
from vbackup.errors import BusyError, DomainGoneError, MalformedError, QmpError, VbackupError
from vbackup.fields import Fields
from vbackup.host import DomainHandle, Host
from vbackup.model import Backup, BitmapSource, Compression, Consistency, DiskImage, Level, Quiesce
from vbackup.monitor import Monitor
from vbackup.plan import BackupPlan, DiskPlan
from vbackup.report import Reporter
from vbackup.repository import LockWait, Repository, Stage, digest, target_errors
from vbackup.source import Source
from vbackup.stop import Stop
from vbackup.storage_daemon import is_locked
from vbackup.undo import Undo

log = logging.getLogger(__name__)

#: NVRAM stores of UEFI firmware are well under 1 MiB.
MAX_NVRAM_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class BackupRequest:
    """What is asked for; the fields are the options of ``vbackup backup``."""

    domain: str  #: name or UUID
    level: Level = Level.AUTO
    disks: tuple[str, ...] = ()  #: only these, if any
    excluded_disks: tuple[str, ...] = ()
    quiesce: Quiesce = Quiesce.AUTO
    speed_bytes_s: int | None = None  #: of each disk's job
    compression: Compression = Compression.NONE
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain


@dataclass(frozen=True)
class _Session:
    """What every step works with: the domain's lock is held, the source of its disks is open."""

    handle: DomainHandle
    source: Source
    repository: Repository
    reporter: Reporter
    stop: Stop

    @property
    def monitor(self) -> Monitor:
        return self.source.monitor


@dataclass(frozen=True)
class _Moment:
    """What is known of the moment that the transaction was taken, and how much its jobs copied."""

    time: datetime
    consistency: Consistency
    frozen_ms: int
    copied_bytes: dict[str, int]  #: by dev


def run(request: BackupRequest, *, host: Host, repository: Repository, reporter: Reporter, stop: Stop) -> Backup:
    """Make a backup and return it as it was committed.

    Raises a VbackupError, whose class says what went wrong; nothing of the backup is left then, and
    a warning tells what could not be undone because QEMU or libvirt could not be reached.
    """
    begun = time.monotonic()
    with _session(request, host=host, repository=repository, reporter=reporter, stop=stop) as session:
        made = _plan(request, session)
        backup = _carry_out(made, request, session, begun=begun)
        _remove_superseded(made, session)
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
            _make_images(made, stage, stop)
            _open_targets(made, stage, session, undo)
            try:
                _send_transaction(session.monitor, made.transaction(abort=True))
            except QmpError as err:
                if "Abort action" not in err.description:
                    raise
            else:
                raise MalformedError(f"QEMU of domain {made.domain.name} carried out a transaction that ends in abort.")
    return made


@contextmanager
def _session(
    request: BackupRequest, *, host: Host, repository: Repository, reporter: Reporter, stop: Stop
) -> Iterator[_Session]:
    """Lock the domain, open the source of its disks, and clear away what a dead run left."""
    handle = host.domain(request.domain)
    stop.check()
    wait = LockWait(request.wait_lock_s, reporter, stop)
    with repository.lock(handle.uuid, wait=wait), source.open_source(handle, reporter=reporter) as opened:
        for backup_id in repository.remove_partial(handle.uuid):
            reporter.step(f"Removed what was left of backup {backup_id}, which never ended.")
        for name in checkpoint.remove_leftovers(opened.monitor, repository.id):
            reporter.step(f"Removed {name} from QEMU, left by a backup that never ended.")
        stop.check()
        yield _Session(handle, opened, repository, reporter, stop)


def _plan(request: BackupRequest, session: _Session) -> BackupPlan:
    repository, reporter = session.repository, session.reporter
    domain = session.source.domain
    disks, left_out = plan.select(domain, request.disks, request.excluded_disks)
    nodes = session.source.disk_nodes(disks)
    taken_ids = repository.taken_ids(domain.uuid)
    for name in checkpoint.remove_uncommitted(session.monitor, nodes, taken_ids, repository.id):
        reporter.step(f"Removed bitmap {name}, left by a backup that never ended.")
    catalogue = repository.catalogue(domain.uuid)
    for broken in catalogue.broken:
        reporter.warning(f"Backup {broken.id} is broken: {broken.reason}")
    choices = []
    for node in nodes:
        choice = chain.choose(request.level, node, catalogue.history, repository_id=repository.id)
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
        repository_id=repository.id,
        now=datetime.now(timezone.utc),
        taken_ids=taken_ids,
        compression=request.compression,
        speed_bytes_s=request.speed_bytes_s,
    )


def _carry_out(made: BackupPlan, request: BackupRequest, session: _Session, *, begun: float) -> Backup:
    """Stage, copy, commit."""
    monitor, handle, repository = session.monitor, session.handle, session.repository
    with repository.stage(made.domain.uuid, made.id) as stage, Undo(session.reporter) as undo:
        _make_images(made, stage, session.stop)
        # Asked before the copy: that of a domain that is off does not mind if libvirtd goes away meanwhile.
        definition = handle.definition_xml()
        versions = {
            "vbackup": vbackup.__version__,
            "qemu": _qemu_version(monitor),
            "libvirt": handle.host.libvirt_version,
        }
        undo.push("remove the new bitmaps", lambda: checkpoint.remove_bitmaps(monitor, _bitmaps(made)))
        moment = _copy(made, request, stage, session)
        files = {"domain.xml": stage.write("domain.xml", definition.encode())}
        files.update(_nvram(made, stage, session))
        backup = Backup(
            id=made.id,
            sequence=made.sequence,
            level=made.level,
            parent=made.parent,
            time=moment.time,
            domain_name=made.domain.name,
            domain_uuid=made.domain.uuid,
            disks=_describe_images(made, moment, stage, session.stop),
            left_out=made.left_out,
            consistency=moment.consistency,
            frozen_ms=moment.frozen_ms,
            duration_s=round(time.monotonic() - begun, 3),
            files=files,
            versions=versions,
        )
        repository.remember_name(made.domain.uuid, made.domain.name)
        session.stop.check()
        stage.commit(backup)
        undo.release()
        # The working bitmaps have done their work; the checkpoints stay.
        undo.push("remove the working bitmaps", lambda: checkpoint.remove_bitmaps(monitor, _bitmaps(made, new=False)))
    return backup


def _bitmaps(made: BackupPlan, *, new: bool = True) -> list[BitmapSource]:
    """What the transaction adds to the disks' nodes: the working bitmaps, and the new checkpoint's."""
    return [
        BitmapSource(disk.node.top.node_name, name)
        for disk in made.disks
        for name in (disk.working_bitmap, disk.bitmap if new else None)
        if name is not None
    ]


def _make_images(made: BackupPlan, stage: Stage, stop: Stop) -> None:
    for disk in made.disks:
        stop.check()
        with target_errors(f"make the image {stage.path / disk.file}"):
            qemu_img.create(
                stage.path / disk.file,
                disk.node.top.virtual_size_bytes,
                backing_rpath=disk.backing_rpath,
                compression=made.compression,
            )


def _open_targets(made: BackupPlan, stage: Stage, session: _Session, undo: Undo) -> list[target.BlockdevOptions]:
    targets = [target.Target(stage.path / disk.file, disk.target_node) for disk in made.disks]
    return target.open_in_qemu(
        session.monitor,
        targets,
        repository_id=session.repository.id,
        undo=undo,
        security_labels=session.source.domain.security_labels,
    )


def _copy(made: BackupPlan, request: BackupRequest, stage: Stage, session: _Session) -> _Moment:
    """The transaction and its jobs; when this returns QEMU has let go of complete images."""
    monitor, reporter, stop = session.monitor, session.reporter, session.stop
    devs = {disk.job_id: disk.dev for disk in made.disks}
    with Undo(reporter) as undo:
        nodes = _open_targets(made, stage, session, undo)
        # Before the targets are closed: a QEMU 7.2 that is stopped keeps the descriptors.
        undo.push("let the guest go on", session.source.resume_later(reporter))
        undo.push("end the backup jobs", lambda: job.cancel(monitor, devs))
        stop.check()
        with session.source.frozen(request.quiesce, reporter) as freeze:
            now = datetime.now(timezone.utc)
            _send_transaction(monitor, made.transaction())
        if freeze.frozen_ms:
            reporter.step(f"Filesystems were frozen for {freeze.frozen_ms} ms.")
        stall_s = job.stall_limit_s(request.speed_bytes_s)
        copied_bytes = job.run(monitor, devs, reporter=reporter, stop=stop, stall_s=stall_s)
        job.cancel(monitor, devs)  # all have concluded: this dismisses them
        target.flush_in_qemu(monitor, nodes)
        target.close_in_qemu(monitor, session.repository.id)
        undo.release()
    return _Moment(now, freeze.consistency, freeze.frozen_ms, copied_bytes)


def _send_transaction(monitor: Monitor, actions: list[dict[str, Any]]) -> None:
    """All actions or none. Raises BusyError where somebody else has a disk, QmpError for all else."""
    try:
        monitor.execute("transaction", {"actions": actions})
    except QmpError as err:
        # "Node 'X' is busy: block device is in use by block job: commit"
        if "in use by block job" in err.description:
            raise BusyError(f"A disk is busy with another block job; try again when it is done ({err}).") from err
        if is_locked(err):
            raise BusyError(
                "The domain was started meanwhile, or another program has the image of one of its disks open; run the"
                f" same command again ({err})."
            ) from err
        raise


def _describe_images(made: BackupPlan, moment: _Moment, stage: Stage, stop: Stop) -> tuple[DiskImage, ...]:
    """Digest the images, several at a time."""

    def describe(disk: DiskPlan) -> DiskImage:
        path = stage.path / disk.file
        return DiskImage(
            dev=disk.dev,
            level=disk.choice.level,
            base=disk.choice.base.id if disk.choice.base else None,
            reason=disk.choice.reason,
            file=disk.file,
            virtual_size_bytes=disk.node.top.virtual_size_bytes,
            file_size_bytes=path.stat().st_size,
            copied_bytes=moment.copied_bytes[disk.dev],
            digest=digest(path, check=stop.check),
            bitmap=disk.bitmap,
            node_name=disk.node.top.node_name,
            source=disk.node.disk.path,
            source_format=disk.node.disk.format,
            encrypted=disk.node.disk.encrypted,
        )

    with ThreadPoolExecutor(max_workers=4) as pool:
        return tuple(pool.map(describe, made.disks))


def _nvram(made: BackupPlan, stage: Stage, session: _Session) -> dict[str, str]:
    """The variables of UEFI firmware, which are no disk; without them a guest may not find its boot loader."""
    path = made.domain.nvram_path
    if path is None:
        return {}
    if not session.handle.host.is_local:
        session.reporter.warning(f"The NVRAM store {path} is on another host and is not in the backup.")
        return {}
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_NVRAM_BYTES + 1)
    except OSError as err:
        session.reporter.warning(f"The NVRAM store {path} cannot be read and is not in the backup: {err.strerror}.")
        return {}
    if len(data) > MAX_NVRAM_BYTES:
        session.reporter.warning(f"The NVRAM store {path} is larger than any firmware's and is not in the backup.")
        return {}
    return {"nvram": stage.write("nvram", data)}


def _remove_superseded(made: BackupPlan, session: _Session) -> None:
    """After the commit: bitmaps that no later backup starts from go. What stays only costs memory."""
    try:
        history = session.repository.catalogue(made.domain.uuid).history
        nodes = session.source.disk_nodes([disk.node.disk for disk in made.disks])
        for name in checkpoint.remove_superseded(session.monitor, nodes, history, session.repository.id):
            log.debug("removed bitmap %s", name)
    except DomainGoneError as err:
        log.debug("%s", err)  # the next backup removes them
    except VbackupError as err:
        session.reporter.warning(f"The backup is complete, but superseded bitmaps were not removed: {err}")


def _qemu_version(monitor: Monitor) -> str:
    version = Fields(monitor.execute("query-version"), "query-version", MalformedError).object("qemu")
    return ".".join(str(version.integer(part)) for part in ("major", "minor", "micro"))
