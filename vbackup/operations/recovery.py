"""Finish, undo or discard the backups that a dead run left: exactly once, however often this is interrupted itself.

A backup whose jobs are still in QEMU is followed to its end and committed; any other is undone. The journal in its
stage says how far it came (vbackup.repository.journal). The domain's lock is held, so the run that began it is dead.
``vbackup recover`` asks for this, and every backup begins with it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum

from vbackup import names
from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import Host
from vbackup.engine import leftovers
from vbackup.engine.finish import Following, close, commit, copy
from vbackup.engine.unfinished import LockedDomain, Unfinished
from vbackup.errors import (
    BusyError,
    ChainError,
    CopiedError,
    DiskError,
    DomainNotFoundError,
    InterruptedBySignalError,
    NewerJournalError,
    QemuGoneError,
    VbackupError,
    domain_argument,
)
from vbackup.files import refuse_link
from vbackup.images import targets
from vbackup.model import FreezeMark, NodeBitmap
from vbackup.qemu import jobs
from vbackup.qemu.jobs import Job, JobStatus
from vbackup.qemu.monitor import block_nodes
from vbackup.report import Reporter
from vbackup.repository import journal, merge_journal
from vbackup.repository.journal import Entry, Journal, Step
from vbackup.repository.repository import Repository
from vbackup.stop import Stop
from vbackup.undo import Undo

#: The reason why a backup is undone if its stage is not the one that was begun (Entry.is_of).
COPIES = "its images are copies, as in a repository that was copied in the middle of a backup"
#: The reason of an undo that was wanted.
_ASKED = "asked for"


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


@dataclass(frozen=True)
class _Case:
    """An unfinished backup, the verdict on it, and what its journal says; None if there is none that can be used."""

    verdict: Recovered
    entry: Entry | None


def uuid_of(domain: str, host: Host, repository: Repository) -> str:
    """Return the UUID of a domain that libvirt or the repository knows by that name or UUID.

    Of several that have had the name it is the one that libvirt has, if anything of that is in the repository. Raises
    DomainNotFoundError, AmbiguousNameError, StorageError if its directory is a symbolic link.
    """
    try:
        uuid = host.domain(domain).uuid
    except DomainNotFoundError:
        return repository.find(domain)
    refuse_link(repository.path / uuid)
    if uuid not in repository.uuids():
        with suppress(DomainNotFoundError):
            return repository.find(domain)
    return uuid


def run(
    uuid: str,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
    abort: bool = False,
    dry_run: bool = False,
    presume_dead: bool = False,
    exclusive: bool = False,
) -> list[Recovered]:
    """Lock a domain and recover its backups, whether libvirt still has the domain or not.

    With ``abort`` nothing is finished; with ``dry_run`` nothing is done; with ``presume_dead`` a vbackup on another
    host that may live counts as dead. ``exclusive``: no other host uses the images of the domain while it is off.
    Raises BusyError if a backup of the domain is being made, or may be in QEMU on another host; and as ``recover``.
    """
    with ExitStack() as stack:
        stack.enter_context(repository.lock(uuid, presume_dead=presume_dead))
        if not dry_run:
            _recover_merges(repository, uuid, reporter=reporter, stop=stop)
        domain = None
        with suppress(DomainNotFoundError):
            access = Access(exclusive)
            opened = stack.enter_context(source.open_source(host.domain(uuid), reporter=reporter, access=access))
            domain = LockedDomain(opened, repository, reporter, stop)
        if domain is None:
            is_forced = abort or presume_dead
            lost = [_assess_lost(repository, uuid, each, is_forced=is_forced) for each in repository.unfinished(uuid)]
            return lost if dry_run else [discard(verdict, repository, uuid=uuid, reporter=reporter) for verdict in lost]
        if dry_run:
            _refuse_copies(domain, abort=abort)
            return [_assess(domain, backup_id, abort=abort).verdict for backup_id in repository.unfinished(uuid)]
        recovered = recover(domain, abort=abort)
        if any(backup.remedy is Remedy.UNDO for backup in recovered):
            _remove_bitmaps(domain)
        return recovered


def recover(domain: LockedDomain, *, abort: bool) -> list[Recovered]:
    """Deal with all unfinished backups of a domain; return what was done.

    With ``abort`` nothing is finished. Raises CopiedError if an unfinished backup is a copy, unless ``abort`` discards
    it, BusyError if QEMU has images of a copy of this repository open, InterruptedBySignalError, and what the monitor
    raises; what could not be undone is a warning.
    """
    finish_merges(domain)
    _refuse_copies(domain, abort=abort)
    recovered = []
    for backup_id in domain.repository.unfinished(domain.uuid):
        case = _assess(domain, backup_id, abort=abort)
        if case.entry is None:
            recovered.append(discard(case.verdict, domain.repository, uuid=domain.uuid, reporter=domain.reporter))
            continue
        nodes = _nodes_read(case.entry, domain)
        try:
            if case.verdict.remedy is Remedy.FINISH:
                recovered.append(finish(case.verdict, case.entry, domain))
            else:
                recovered.append(undo(case.verdict, case.entry, domain))
        finally:
            for dev in domain.source.close_detached(nodes) if nodes else ():
                domain.reporter.step(f"Disk {dev} was detached during the interrupted backup.")
    # What has no journal, or belongs to a repository that was put back to an earlier state. Where locks do not lock,
    # another vbackup may have begun a backup since.
    domain.repository.refuse_live_writers(domain.uuid)
    for name in leftovers.remove_leftovers(domain.monitor, domain.naming):
        domain.reporter.step(f"Removed {name} from QEMU, left by an interrupted backup.")
    return recovered


def finish_merges(domain: LockedDomain) -> None:
    """Finish or undo the merges that a dead run left. What cannot be finished now is a warning: no backup needs it."""
    try:
        _recover_merges(domain.repository, domain.uuid, reporter=domain.reporter, stop=domain.stop)
    except InterruptedBySignalError:
        raise
    except VbackupError as err:
        domain.reporter.warning(
            f"A merge of backups, which was interrupted, could not be finished: {err} Backups that are listed can be"
            " restored all the same, and the next run tries again."
        )


def _recover_merges(repository: Repository, uuid: str, *, reporter: Reporter, stop: Stop) -> None:
    if merge_journal.leftovers(repository.path / uuid):
        from vbackup.operations import consolidation  # a storage daemon, and more that no other run needs

        consolidation.recover(repository, uuid, reporter=reporter, stop=stop)


def _refuse_copies(domain: LockedDomain, *, abort: bool) -> None:
    """Raise CopiedError if an unfinished backup is a copy, BusyError if QEMU has images of the original open.

    A copy of a repository has the same names in QEMU, so nothing there is known to be this one's.
    """
    for backup_id in domain.repository.unfinished(domain.uuid):
        entry, _ = read(domain.repository, domain.uuid, backup_id)
        if entry is not None:
            _is_copy(entry, domain, abort=abort)
    if not domain.source.is_running:
        return  # a storage daemon is this process's own
    repository = domain.repository
    node = targets.open_elsewhere(domain.monitor, domain.naming, repository.path)
    if node is not None:
        name, host = domain_argument(domain.source.domain.name), domain.source.handle.host
        forget = host.command(f"vbackup forget {name} --repository-id {repository.id} --force")
        raise BusyError(
            f"Another copy of repository {repository.id} is backing up domain {domain.source.domain.name}, or was"
            f" interrupted: QEMU has its image open (node {node}). Nothing was changed. Wait for it to end, or run"
            f" 'vbackup recover' with that copy; if it is gone, '{forget}' ends what it has in QEMU. 'vbackup recover"
            f" -r {shlex.quote(str(repository.path))} --adopt' makes this copy a separate repository, with a new id."
        )


def discard(verdict: Recovered, repository: Repository, *, uuid: str, reporter: Reporter) -> Recovered:
    """Remove the stage: nothing of the backup is known to be anywhere else."""
    with repository.stage(uuid, verdict.id, existing=True):
        reporter.step(f"Removed the rest of backup {verdict.id}: {verdict.reason}.")
    return verdict


def finish(verdict: Recovered, entry: Entry, domain: LockedDomain) -> Recovered:
    """Follow the backup to its end and commit it; if that fails, it is undone, with a warning.

    Raises InterruptedBySignalError and QemuGoneError.
    """
    try:
        _finish(entry, domain)
    except (InterruptedBySignalError, QemuGoneError):
        raise
    except VbackupError as err:
        domain.reporter.warning(
            f"Backup {verdict.id}, which was interrupted, could not be finished and was undone: {err}"
        )
        return Recovered(verdict.id, Remedy.UNDO, str(err).rstrip("."))
    domain.reporter.step(f"Finished backup {verdict.id}, which was interrupted: {verdict.reason}.")
    return verdict


def undo(verdict: Recovered, entry: Entry, domain: LockedDomain) -> Recovered:
    """Undo everything that the backup began, in QEMU and in the repository."""
    with (
        domain.repository.stage(domain.uuid, verdict.id, existing=True) as stage,
        Undo(domain.reporter) as undo_steps,
    ):
        _push_undo(Unfinished(domain, entry.draft, stage), entry, undo_steps)
    how = "" if entry.step is Step.STREAMED else ", which was interrupted"  # one that was sent is complete
    why = f", as {_ASKED}" if verdict.reason == _ASKED else f": {verdict.reason}"
    domain.reporter.step(f"Undid backup {verdict.id}{how}{why}.")
    return verdict


def _remove_bitmaps(domain: LockedDomain) -> None:
    """Remove the bitmaps of backups that were never committed, also from the images of a domain that is off."""
    try:
        nodes = domain.source.disk_nodes(domain.source.domain.disks)
        taken_ids = domain.repository.taken_ids(domain.uuid)
        taken_ids |= domain.repository.catalogue(domain.uuid).history.checkpoints
        for name in leftovers.remove_uncommitted(domain.monitor, nodes, taken_ids, domain.naming):
            domain.reporter.step(f"Removed bitmap {name}, {leftovers.UNCOMMITTED}.")
    except DiskError as err:
        domain.reporter.warning(
            f"Bitmaps of an undone backup may be left; the next backup of the domain removes them: {err}"
        )


def _assess(domain: LockedDomain, backup_id: str, *, abort: bool) -> _Case:
    """Return what should be done about an unfinished backup; nothing is changed."""
    entry, reason = read(domain.repository, domain.uuid, backup_id)
    if entry is None:
        return _Case(Recovered(backup_id, Remedy.UNDO, reason), None)
    if _is_copy(entry, domain, abort=abort):
        return _Case(Recovered(backup_id, Remedy.UNDO, COPIES), None)
    return _Case(_judge(entry, domain, abort=abort), entry)


def _is_copy(entry: Entry, domain: LockedDomain, *, abort: bool) -> bool:
    """Return True for a copy that can be discarded, False for no copy. Raises CopiedError if the user has to decide.

    The jobs in QEMU have the names of a copy, but write to the images of the original. A stage of this host, which has
    booted since, can also be on a filesystem that numbers its files again at every mount; QEMU has nothing of it any
    more.
    """
    if entry.is_of(domain.repository.stage_path(domain.uuid, entry.draft.id)):
        return False
    if not abort and (entry.writer.is_of_this_boot or not entry.writer.is_of_this_host):
        uri = domain.source.handle.host.uri
        raise CopiedError(os.fspath(domain.repository.path), entry.draft.id, domain.uuid, uri=uri)
    return True


def _assess_lost(repository: Repository, uuid: str, backup_id: str, *, is_forced: bool) -> Recovered:
    """Return the verdict if libvirt does not have the domain: there is no QEMU to finish or undo anything in.

    Raises BusyError if it may be on the host where the backup was begun, unless ``is_forced``: QEMU may be copying.
    """
    entry, reason = read(repository, uuid, backup_id)
    if entry is None:
        return Recovered(backup_id, Remedy.UNDO, reason)
    host = entry.writer.host
    is_elsewhere = host is not None and not entry.writer.is_of_this_host
    if is_elsewhere and not is_forced and entry.is_of(repository.stage_path(uuid, backup_id)):
        raise BusyError(
            f"Backup {backup_id} of domain {entry.draft.domain_name} ({uuid}) was begun on host {host}, where QEMU may"
            " still copy it; libvirt here does not have that domain. Run 'vbackup recover' on that host; if it is gone,"
            " 'vbackup recover --force' discards the backup here."
        )
    return Recovered(backup_id, Remedy.UNDO, _why_lost(entry))


def read(repository: Repository, uuid: str, backup_id: str) -> tuple[Entry | None, str]:
    """Return the journal's entry, or None and the reason why there is none.

    Raises NewerJournalError.
    """
    if not names.BACKUP_ID.fullmatch(backup_id):
        return None, "vbackup did not create it"
    directory = repository.stage_path(uuid, backup_id)
    if directory.is_symlink() or not directory.is_dir():
        return None, "its stage is not a directory"
    try:
        entry = journal.read(directory, backup_id=backup_id, domain_uuid=uuid)
    except NewerJournalError:
        raise
    except ChainError as err:
        return None, str(err).rstrip(".")
    return entry, "its journal is missing or incomplete"


def _judge(entry: Entry, domain: LockedDomain, *, abort: bool) -> Recovered:
    backup_id, naming = entry.draft.id, domain.naming
    reason = _why_undone(entry, domain, abort=abort)
    if reason is not None:
        return Recovered(backup_id, Remedy.UNDO, reason)
    if entry.step is Step.FLUSHED:
        return Recovered(backup_id, Remedy.FINISH, "its images are complete")
    if entry.is_served:
        return Recovered(backup_id, Remedy.UNDO, "its images were received by a server that ended with it")
    known = jobs.query(domain.monitor)
    copies = [known.get(naming.job(backup_id, image.dev)) for image in entry.draft.disks]
    if entry.step is Step.COPIED:
        nodes = block_nodes(domain.monitor)
        wanted = {naming.target_node(image.dev) for image in entry.draft.disks}
        if wanted <= nodes.node_names():
            return Recovered(backup_id, Remedy.FINISH, "its jobs have ended well")
    elif all(job is not None and _can_end_well(job) for job in copies):
        return Recovered(backup_id, Remedy.FINISH, "its jobs survived in QEMU")
    error = next((job.error for job in copies if job is not None and job.error is not None), None)
    return Recovered(backup_id, Remedy.UNDO, f"a job had failed: {error}" if error else _why_gone(entry))


def _why_undone(entry: Entry, domain: LockedDomain, *, abort: bool) -> str | None:
    """Return why a backup is undone whatever QEMU has of it, or None."""
    if abort:
        return _ASKED
    if entry.step in (Step.BEGIN, Step.TARGETS):
        return "nothing had been copied"
    if domain.repository.is_stage:
        # Whoever read its stream takes it for failed: only 'vbackup stream commit' makes it a base.
        return "its stream was never committed" if entry.step is Step.STREAMED else "its stream did not end"
    return None


def _can_end_well(job: Job) -> bool:
    return job.error is None and job.status not in (JobStatus.ABORTING, JobStatus.NULL)


def _why_gone(entry: Entry) -> str:
    if not entry.writer.is_of_this_boot:
        return "its jobs are gone: it was made before this host booted, or on another host"
    return "its jobs are gone: the domain has another QEMU now, or they were never started"


def _why_lost(entry: Entry) -> str:
    return f"libvirt does not have the domain any more, and {_SO_FAR[entry.step]}"


#: What had happened of a backup that got as far as this step.
_SO_FAR = {
    Step.BEGIN: "nothing had been copied",
    Step.TARGETS: "nothing had been copied",
    Step.MOMENT: "its jobs may have begun",
    Step.STARTED: "its jobs were copying",
    Step.COPIED: "its jobs had ended well, but it was not committed",
    Step.FLUSHED: "its images were complete, but it was not committed",
    Step.STREAMED: "its stream was complete, but it was not committed",
}


def _nodes_read(entry: Entry, domain: LockedDomain) -> Mapping[str, str]:
    """Return the node of each disk, by dev, that the dead run copied from this very QEMU; elsewhere names differ."""
    if not domain.source.is_running:
        return {}
    naming, known, nodes = domain.naming, jobs.query(domain.monitor), block_nodes(domain.monitor)
    return {
        image.dev: image.node_name
        for image in entry.draft.disks
        if naming.job(entry.draft.id, image.dev) in known
        or naming.target_node(image.dev) in nodes.node_names()
        or image.bitmap in nodes.bitmaps(image.node_name)
    }


def _finish(entry: Entry, domain: LockedDomain) -> None:
    with (
        domain.repository.stage(domain.uuid, entry.draft.id, existing=True) as stage,
        Journal(stage.path) as written,
        Undo(domain.reporter) as undo_steps,
    ):
        backup = Unfinished(domain, entry.draft, stage, relied_on_marks=_relied_on_marks(entry, domain))
        _push_undo(backup, entry, undo_steps)
        written.take_over()
        if entry.step is Step.MOMENT:
            domain.source.thaw(domain.reporter, mark=_freeze_mark(entry))
        if entry.step in (Step.MOMENT, Step.STARTED):
            backup = copy(backup, written, Following())
        elif entry.step is Step.COPIED:
            backup = close(backup, written)
        commit(backup, written, begun=None)
        undo_steps.release()
        # After the commit, too, QEMU keeps nothing that only the copy needed.
        backup.push_undo_of_nodes(undo_steps)
        undo_steps.push(
            "remove the working bitmaps", lambda: leftovers.remove_bitmaps(domain.monitor, backup.working_bitmaps)
        )


def _relied_on_marks(entry: Entry, domain: LockedDomain) -> list[NodeBitmap]:
    """Return the end marks that the dead run relied on, where they are: those of the bases' sizes."""
    history = domain.repository.catalogue(entry.draft.domain_uuid).history
    committed = {backup.id: backup for backup in history.backups}
    bases = ((image, committed[image.base].image(image.dev)) for image in entry.draft.disks if image.base in committed)
    return [
        NodeBitmap(image.node_name, domain.naming.end_mark(image.dev, base.virtual_size_bytes))
        for image, base in bases
        if base is not None
    ]


def _push_undo(backup: Unfinished, entry: Entry, undo_steps: Undo) -> None:
    backup.push_undo_of_bitmaps(undo_steps)
    backup.push_undo_of_nodes(undo_steps)
    backup.push_undo_of_jobs(undo_steps, guest_was_stopped=entry.guest_was_stopped)
    if entry.step is Step.MOMENT:
        source, reporter, mark = backup.domain.source, backup.domain.reporter, _freeze_mark(entry)
        undo_steps.push("thaw the guest's filesystems", lambda: source.thaw(reporter, mark=mark))


def _freeze_mark(entry: Entry) -> FreezeMark:
    """Return how to tell whether the dead run froze the guest: its mark ended with the boot of its host."""
    if entry.freeze_mark is FreezeMark.MARKED and not entry.writer.is_of_this_boot:
        return FreezeMark.UNMARKED
    return entry.freeze_mark
