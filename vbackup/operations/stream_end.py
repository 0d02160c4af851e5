"""Say what has become of a stream: ``vbackup stream commit`` and ``vbackup stream abort``.

Both may be repeated, and name the backup by the job that it was made for: a late word about an earlier job does nothing
to the backup of the next one. Where a job has the name of an earlier one, as of a director that counts from 1
again, the word is about the backup that waits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from vbackup.domain.host import Host
from vbackup.errors import BusyError, ChainError, DomainNotFoundError, StreamNotPendingError
from vbackup.model import Backup, Level
from vbackup.operations import recovery
from vbackup.report import Reporter
from vbackup.repository import journal, removal, stream_record
from vbackup.repository.history import History
from vbackup.repository.journal import Step
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class Ended:
    """What has become of the backup of a job."""

    domain_uuid: str
    job: str
    backup_id: str | None  #: None if there was none to undo
    is_done: bool  #: False if there was nothing left to do


def commit(
    domain: str, job: str, *, stage: Repository, reporter: Reporter, stop: Stop, wait_lock_s: float = 0.0
) -> Ended:
    """Make the backup of that job a base for later ones; neither libvirt nor QEMU is asked.

    Raises StreamNotPendingError if there is no such backup, DomainNotFoundError, BusyError if another backup of the
    domain has begun, StorageError.
    """
    uuid = stage.find(domain)
    if _pending(stage, uuid, job) is None:
        committed = _committed(stage, uuid, job)
        if committed is not None:
            return Ended(uuid, job, committed.id, is_done=False)
        raise _not_pending(stage, uuid, domain=domain, job=job)
    wait = LockWait(wait_lock_s, reporter, stop, name=stage.name_of(uuid))
    with stage.lock(uuid, wait=wait):
        backup_id = _pending(stage, uuid, job)
        if backup_id is None:  # undone meanwhile
            raise _not_pending(stage, uuid, domain=domain, job=job)
        with stage.stage(uuid, backup_id, existing=True) as pending:
            pending.hold()
            pending.publish()
        _forget_older(stage, uuid, reporter)
    return Ended(uuid, job, backup_id, is_done=True)


def abort(
    domain: str,
    job: str,
    *,
    connect: Callable[[], AbstractContextManager[Host]],
    stage: Repository,
    reporter: Reporter,
    stop: Stop,
) -> Ended:
    """Undo the backup of that job, in QEMU too; its base is as it was. A job without a backup has nothing to undo.

    ``connect`` opens the connection to libvirt, which only an undo needs. Raises ChainError if it was committed,
    BusyError if another backup of the domain has begun, and what recovery.run raises.
    """
    try:
        uuid = stage.find(domain)
    except DomainNotFoundError:
        return Ended(domain, job, None, is_done=False)  # its first backup failed early
    backup_id = _pending(stage, uuid, job)
    committed = _committed(stage, uuid, job) if backup_id is None else None
    if committed is not None:
        raise ChainError(
            f"The backup of job {job} of domain {domain}, {committed.id}, was committed: it is the base of later ones,"
            " and cannot be undone."
        )
    if backup_id is None:
        return Ended(uuid, job, None, is_done=False)
    try:
        with connect() as host:
            recovery.run(uuid, host=host, repository=stage, reporter=reporter, stop=stop, abort=True)
    except BusyError:
        if _pending(stage, uuid, job) is not None:
            raise
        return Ended(uuid, job, None, is_done=False)  # the next backup, which has begun, has undone it
    return Ended(uuid, job, backup_id, is_done=True)


def _pending(stage: Repository, uuid: str, job: str) -> str | None:
    """Return the id of the backup of a job that waits for its commit, None without one."""
    for backup_id in stage.unfinished(uuid):
        path = stage.stage_path(uuid, backup_id)
        record = stream_record.read(path)
        if record is None or record.job != job:
            continue
        try:
            entry = journal.read(path, backup_id=backup_id, domain_uuid=uuid)
        except ChainError:
            continue
        if entry is not None and entry.step is Step.STREAMED and entry.is_of(path):
            return backup_id
    return None


def _committed(stage: Repository, uuid: str, job: str) -> Backup | None:
    for backup in reversed(stage.catalogue(uuid).history.backups):
        record = stream_record.read(stage.directory(uuid, backup.id))
        if record is not None and record.job == job:
            return backup
    return None


def _not_pending(stage: Repository, uuid: str, *, domain: str, job: str) -> StreamNotPendingError:
    why = (
        "does not wait for a commit: it failed, was undone, or a later backup has taken its place. The next backup"
        " starts from the one before."
    )
    if stage.running(uuid):
        why = "does not wait for a commit: it has not ended, or a later backup has taken its place."
    return StreamNotPendingError(domain, job, why=why)


def _forget_older(stage: Repository, uuid: str, reporter: Reporter) -> None:
    """Remove the records of backups that no chain of a possible base needs any more."""
    directory = stage.path / uuid
    history = stage.catalogue(uuid).history
    needed = _needed(history, stage, uuid)
    for backup in reversed(history.backups):
        if backup.id not in needed:
            removal.take_away(directory / backup.id)
    for failure in removal.delete_removed(directory):
        reporter.warning(f"A record that is not needed any more could not be removed: {failure}.")


def _needed(history: History, stage: Repository, uuid: str) -> frozenset[str]:
    """Return the ids of the backups in the chains of the newest backup and the last fulls of each disk.

    Also of the newest but one: a director can say later that the newest job has failed after all.
    """
    asked_full = [
        backup
        for backup in history.backups
        if (record := stream_record.read(stage.directory(uuid, backup.id))) is not None and record.asked is Level.FULL
    ]
    starts = [*history.backups[-2:], *asked_full[-1:]]
    needed = {backup.id for backup in starts}
    for dev in {image.dev for backup in history.backups for image in backup.disks}:
        of_disk = [one for one in (history.newest(dev), history.last_full(dev), *starts) if one is not None]
        needed |= {link.backup.id for one in of_disk for link in history.present(one.id, dev)}
    return frozenset(needed)
