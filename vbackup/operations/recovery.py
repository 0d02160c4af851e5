"""Finish or undo what a run that died has left: exactly once, however often this is interrupted itself.

A backup whose jobs are still in QEMU is followed to its end and committed; anything else is undone. The journal
in its stage says how far it had come (vbackup.repository.journal); that all of it is a dead run's is sure because the
domain's lock is held. ``vbackup recover`` asks for it, and every backup begins with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum

from vbackup import names
from vbackup.domain import source
from vbackup.domain.host import Host
from vbackup.domain.source import Source
from vbackup.engine import finish, foreign_jobs, leftovers, unfinished
from vbackup.engine.unfinished import Unfinished
from vbackup.errors import (
    ChainError,
    DiskError,
    DomainNotFoundError,
    InterruptedBySignalError,
    QemuGoneError,
    VbackupError,
)
from vbackup.model import NodeBitmap
from vbackup.qemu import jobs
from vbackup.qemu.jobs import Job, JobStatus
from vbackup.qemu.monitor import block_nodes
from vbackup.report import Reporter
from vbackup.repository import journal
from vbackup.repository.journal import Entry, Journal, Step
from vbackup.repository.repository import Repository, Stage
from vbackup.stop import Stop
from vbackup.undo import Undo

log = logging.getLogger(__name__)


class Remedy(Enum):
    """What is done about an unfinished backup."""

    FINISH = "finish"
    UNDO = "undo"

    @property
    def done(self) -> str:
        """As a participle."""
        return {Remedy.FINISH: "finished", Remedy.UNDO: "undone"}[self]


@dataclass(frozen=True)
class Recovered:
    """An unfinished backup, and what was, or would be, done about it."""

    id: str
    remedy: Remedy
    reason: str


def uuid_of(domain: str, host: Host, repository: Repository) -> str:
    """The UUID of a domain that libvirt or the repository knows by that name or UUID. Raises DomainNotFoundError."""
    try:
        return host.domain(domain).uuid
    except DomainNotFoundError:
        return repository.find(domain)


def run(
    uuid: str,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    abort: bool = False,
    dry_run: bool = False,
) -> list[Recovered]:
    """Lock a domain and recover it, whether libvirt still has it or not.

    Raises BusyError where a backup of it is being made, and what ``recover`` raises.
    """
    with ExitStack() as stack:
        stack.enter_context(repository.lock(uuid))
        opened = None
        with suppress(DomainNotFoundError):
            opened = stack.enter_context(source.open_source(host.domain(uuid), reporter=reporter))
        found = recover(opened, repository, reporter=reporter, stop=stop, uuid=uuid, abort=abort, dry_run=dry_run)
        if opened is not None and not dry_run and any(one.remedy is Remedy.UNDO for one in found):
            _remove_bitmaps(opened, repository, reporter)
        return found


def _remove_bitmaps(opened: Source, repository: Repository, reporter: Reporter) -> None:
    """Those of backups that were never committed, also in the images of a domain that is off."""
    try:
        nodes = opened.disk_nodes(opened.domain.disks)
        taken_ids = repository.taken_ids(opened.domain.uuid)
        for name in leftovers.remove_uncommitted(opened.monitor, nodes, taken_ids, repository.naming):
            reporter.step(f"Removed bitmap {name}, left by a backup that never ended, or by a QEMU that was killed.")
    except DiskError as err:
        reporter.warning(f"Bitmaps of what was undone may be left, which the next backup removes: {err}")


def recover(
    opened: Source | None,
    repository: Repository,
    *,
    reporter: Reporter,
    stop: Stop,
    uuid: str | None = None,
    abort: bool = False,
    dry_run: bool = False,
) -> list[Recovered]:
    """Deal with all unfinished backups of a domain; its lock must be held.

    ``opened`` is None, and ``uuid`` given, for a domain that libvirt does not have any more. With ``abort``
    nothing is finished; with ``dry_run`` nothing is done. Raises InterruptedBySignalError, and what the
    monitor raises; what could not be undone is a warning.
    """
    uuid = uuid or (opened.domain.uuid if opened is not None else "")
    found = []
    for backup_id in repository.unfinished(uuid):
        entry, reason = _read(repository, uuid, backup_id)
        if entry is not None and opened is not None:
            judged = _judge(entry, opened, repository, abort=abort)
        else:
            judged = Recovered(backup_id, Remedy.UNDO, reason or "the domain is not there any more")
        if not dry_run:
            read = _nodes_read(entry, opened, repository) if entry is not None and opened is not None else {}
            try:
                judged = _carry_out(judged, entry, opened, repository, uuid, reporter=reporter, stop=stop)
            finally:
                _close_detached(read, opened, reporter)
        found.append(judged)
    if opened is not None and not dry_run:
        # Without a journal, or from a repository that was put back to an earlier state.
        for name in leftovers.remove_leftovers(opened.monitor, repository.naming):
            reporter.step(f"Removed {name} from QEMU, left by a backup that never ended.")
    return found


def _nodes_read(entry: Entry, opened: Source, repository: Repository) -> dict[str, str]:
    """The node of each disk, by dev, if the dead run was copying from this very QEMU; else names mean other nodes."""
    if not isinstance(opened, source.RunningSource):
        return {}
    known, nodes = jobs.query(opened.monitor), block_nodes(opened.monitor)
    return {
        image.dev: image.node_name
        for image in entry.draft.disks
        if repository.naming.job(entry.draft.id, image.dev) in known
        or repository.naming.target_node(image.dev) in nodes.node_names()
        or image.bitmap in nodes.bitmaps(image.node_name)
    }


def _close_detached(nodes: Mapping[str, str], opened: Source | None, reporter: Reporter) -> None:
    """Let go of disks that were detached while nobody was there."""
    if not nodes or opened is None:
        return
    try:
        for dev in foreign_jobs.close_detached(opened.monitor, nodes):
            reporter.step(f"Disk {dev} was detached during the backup that was cut off.")
    except VbackupError as err:
        log.debug("%s", err)  # QEMU is gone, or cannot be asked


def _read(repository: Repository, uuid: str, backup_id: str) -> tuple[Entry | None, str]:
    if not names.BACKUP_ID.fullmatch(backup_id):
        return None, "it is none that vbackup has begun"
    directory = repository.stage_path(uuid, backup_id)
    if directory.is_symlink() or not directory.is_dir():
        return None, "its stage is no directory"
    try:
        entry = journal.read(directory, backup_id=backup_id, domain_uuid=uuid)
    except ChainError as err:
        return None, str(err).rstrip(".")
    return entry, "nothing had been begun outside the repository"


def _judge(entry: Entry, opened: Source, repository: Repository, *, abort: bool) -> Recovered:
    backup_id = entry.draft.id
    reason = "asked for" if abort else _why_not_finished(entry, repository)
    if reason is not None:
        return Recovered(backup_id, Remedy.UNDO, reason)
    if entry.step is Step.FLUSHED:
        return Recovered(backup_id, Remedy.FINISH, "its images are complete")
    known = jobs.query(opened.monitor)
    ours = [known.get(repository.naming.job(backup_id, image.dev)) for image in entry.draft.disks]
    if entry.step is Step.COPIED:
        nodes = block_nodes(opened.monitor)
        wanted = {repository.naming.target_node(image.dev) for image in entry.draft.disks}
        if wanted <= nodes.node_names():
            return Recovered(backup_id, Remedy.FINISH, "its jobs have ended well")
    elif all(one is not None and _can_end_well(one) for one in ours):
        return Recovered(backup_id, Remedy.FINISH, "its jobs are still in QEMU")
    failed = next((one.error for one in ours if one is not None and one.error is not None), None)
    return Recovered(backup_id, Remedy.UNDO, f"a job had failed: {failed}" if failed else _why_gone(entry))


def _why_not_finished(entry: Entry, repository: Repository) -> str | None:
    if entry.step in (Step.BEGIN, Step.TARGETS):
        return "nothing had been copied"
    if not entry.is_of(repository.stage_path(entry.draft.domain_uuid, entry.draft.id)):
        # The jobs in QEMU have its name, but write to the other's images.
        return "its images are copies, as those of a repository that was copied in the middle of a backup"
    return None


def _can_end_well(one: Job) -> bool:
    return one.error is None and one.status not in (JobStatus.ABORTING, JobStatus.NULL)


def _why_gone(entry: Entry) -> str:
    if not entry.writer.is_of_this_boot:
        return "its jobs are gone: it was made before this host was started, or on another one"
    return "its jobs are gone: the domain has another QEMU now, or they were never started"


def _carry_out(
    judged: Recovered,
    entry: Entry | None,
    opened: Source | None,
    repository: Repository,
    uuid: str,
    *,
    reporter: Reporter,
    stop: Stop,
) -> Recovered:
    with repository.stage(uuid, judged.id, existing=True) as stage:
        if entry is None or opened is None:
            reporter.step(f"Removed what was left of backup {judged.id}: {judged.reason}.")
            return judged
        if judged.remedy is Remedy.FINISH:
            try:
                _finish(entry, stage, opened, repository, reporter=reporter, stop=stop)
            except (InterruptedBySignalError, QemuGoneError):
                raise
            except VbackupError as err:
                reporter.warning(f"Backup {judged.id}, which was cut off, could not be finished and was undone: {err}")
                return Recovered(judged.id, Remedy.UNDO, str(err).rstrip("."))
            reporter.step(f"Finished backup {judged.id}, which was cut off: {judged.reason}.")
            return judged
        with Journal(stage.path) as written, Undo(reporter) as undo:
            _push_undo(Unfinished(entry.draft, stage, written, opened, repository, reporter, stop), undo, entry)
        reporter.step(f"Undid backup {judged.id}, which was cut off: {judged.reason}.")
        return judged


def _finish(
    entry: Entry, stage: Stage, opened: Source, repository: Repository, *, reporter: Reporter, stop: Stop
) -> None:
    with Journal(stage.path) as written, Undo(reporter) as undo:
        relied_on_marks = _relied_on_marks(entry, repository)
        work = Unfinished(
            entry.draft, stage, written, opened, repository, reporter, stop, relied_on_marks=relied_on_marks
        )
        _push_undo(work, undo, entry)
        if entry.step is Step.MOMENT:
            opened.thaw(reporter)
        if entry.step in (Step.MOMENT, Step.STARTED):
            work = finish.copy(work)
        elif entry.step is Step.COPIED:
            work = finish.close(work)
        finish.commit(work, begun=None)
        undo.release()
        unfinished.push_undo_of_targets(work, undo)
        undo.push("remove the working bitmaps", lambda: leftovers.remove_bitmaps(work.monitor, work.working_bitmaps))


def _relied_on_marks(entry: Entry, repository: Repository) -> list[NodeBitmap]:
    """The end marks that the dead run has relied on, where they are: those of the bases' sizes."""
    made = {one.id: one for one in repository.catalogue(entry.draft.domain_uuid).history.backups}
    bases = ((one, made[one.base].image(one.dev)) for one in entry.draft.disks if one.base in made)
    return [
        NodeBitmap(one.node_name, repository.naming.end_mark(one.dev, base.virtual_size_bytes))
        for one, base in bases
        if base is not None
    ]


def _push_undo(work: Unfinished, undo: Undo, entry: Entry) -> None:
    unfinished.push_undo_of_bitmaps(work, undo)
    unfinished.push_undo_of_targets(work, undo)
    unfinished.push_undo_of_jobs(work, undo, guest_was_stopped=entry.guest_was_stopped)
    if entry.step is Step.MOMENT:
        undo.push("thaw the guest's filesystems", lambda: work.source.thaw(work.reporter))
