"""Back up a domain into a stream: ``vbackup stream backup``.

The backup is made in a stage (Repository.is_stage), because QEMU writes images at random offsets, and sent from there
when all disks are complete. It is no base for a later backup until ``vbackup stream commit`` says that whoever read the
stream has kept it (vbackup.operations.stream_end); if that never comes, the next backup undoes it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vbackup.domain.host import Host
from vbackup.engine.delivery import Delivery
from vbackup.errors import ChainError, DomainNotFoundError, UsageError
from vbackup.files import storage_errors
from vbackup.model import Backup, Level
from vbackup.operations import backup
from vbackup.operations.backup import BackupRequest
from vbackup.report import Reporter
from vbackup.repository import journal, removal, repository, stream_members, stream_record, writer
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.repository.stream_record import StreamRecord
from vbackup.repository.stream_tar import Write
from vbackup.scripts.runner import DomainScripts
from vbackup.stop import Stop

#: How long to wait for an earlier backup that was asked to end. It cancels its jobs, and closes its images.
TAKE_OVER_S = 60.0


@dataclass(frozen=True)
class StreamRequest:
    """The options of ``vbackup stream backup``."""

    backup: BackupRequest
    job: str  #: what a commit names it by
    falls_back: bool = False  #: without a base for a differential it is a full
    takes_over: bool = False  #: an earlier one that still runs has been given up, and is ended
    begun: str | None = None  #: when the director made the job, by its clock (stream_record.TIME): before its start
    since: str | None = None  #: when the job had begun that the director wants it to start from


def opened_stage(path: Path) -> Repository:
    """Open the stage of streams, and make it if there is nothing yet. Raises StorageError.

    A director can begin the first jobs of several domains at once, each of which finds no stage.
    """
    if not (path / repository.MARKER).exists():
        with storage_errors(f"create the stage {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with storage_errors(f"lock {path}"):
                fcntl.flock(fd, fcntl.LOCK_EX)
            if not (path / repository.MARKER).exists():
                return Repository.create(path, is_stage=True)
        finally:
            os.close(fd)
    return Repository.open(path, is_stage=True)


def run(
    request: StreamRequest,
    write: Write,
    *,
    host: Host,
    stage: Repository,
    reporter: Reporter,
    stop: Stop,
    scripts: DomainScripts | None = None,
) -> Backup:
    """Make a backup, write it as a stream, and return it; it waits for its commit then.

    An earlier one that waits for its commit is undone first; ``scripts`` are the user's, which run around it. Raises
    UsageError if another program keeps the earlier ones; what operations.backup.run raises, and what ``write`` raises:
    then nothing is kept, and the base is as it was.
    """

    def send(made: Backup, directory: Path) -> None:
        reporter.step(f"Backup {made.id} is complete; sending it.")
        stream_members.send(made, directory, write, reporter=reporter, check=stop.check)

    def make(level: Level, asked: Level) -> Backup:
        return backup.run(
            replace(request.backup, level=level, falls_back=request.falls_back and level is Level.DIFFERENTIAL),
            host=host,
            repository=stage,
            reporter=reporter,
            stop=stop,
            scripts=scripts,
            delivery=Delivery(StreamRecord(request.job, asked, request.begun), send),
        )

    _refuse_shared(request, host=host, stage=stage)
    if request.takes_over:
        request = replace(request, backup=_taken_over(request.backup, host=host, stage=stage, reporter=reporter))
    asked = request.backup.level
    if request.since is not None:
        _forget_unknown(request, asked, host=host, stage=stage, reporter=reporter, stop=stop)
    if asked is Level.DIFFERENTIAL and request.falls_back and not _has_full(request.backup.domain, stage, host):
        reporter.step("No full backup that was asked for is a base for a differential of all disks: this is a full.")
        return make(Level.FULL, asked)
    return make(asked, asked)


def _refuse_shared(request: StreamRequest, *, host: Host, stage: Repository) -> None:
    """Raise UsageError if one of a director and another program has kept the earlier backups, and the other asks.

    A backup would start from one that is not where it is kept itself, and could not be restored from there.
    """
    uuid = host.domain(request.backup.domain).uuid
    for one in reversed(stage.catalogue(uuid).history.backups):
        record = stream_record.read(stage.directory(uuid, one.id))
        if record is None:
            continue
        if (record.begun is None) != (request.begun is None):
            whose = "a program that called 'vbackup stream'" if record.begun is None else "a director"
            raise UsageError(
                f"{stage.path} is the stage of {whose}, which keeps backup {one.id} of domain {request.backup.domain}"
                f" (job {record.job}): one that starts from it has to be kept there, too. Give another stage with"
                " --stage."
            )
        return


def _taken_over(request: BackupRequest, *, host: Host, stage: Repository, reporter: Reporter) -> BackupRequest:
    """Ask the vbackup that still backs up the domain here to end; return a request that waits for that.

    A director that cancels a job goes on reading its pipe until there is something in it, which can take as long as
    QEMU copies; meanwhile its next job begins.
    """
    uuid = host.domain(request.domain).uuid
    for backup_id in stage.unfinished(uuid):
        with suppress(ChainError):
            entry = journal.read(stage.stage_path(uuid, backup_id), backup_id=backup_id, domain_uuid=uuid)
            if entry is not None and writer.terminate(entry.writer):
                reporter.step(f"Ended backup {backup_id}, which process {entry.writer.process.pid} was still making.")
    return replace(request, wait_lock_s=max(request.wait_lock_s, TAKE_OVER_S))


def _forget_unknown(
    request: StreamRequest, asked: Level, *, host: Host, stage: Repository, reporter: Reporter, stop: Stop
) -> None:
    """Forget backups that were committed, and that the director does not know: their jobs failed after all.

    Its last good job, which began at ``since``, was made before that, and each later one after it. For a differential
    that is the last full.
    """
    uuid = host.domain(request.backup.domain).uuid
    wait = LockWait(request.backup.wait_lock_s, reporter, stop, name=request.backup.domain)
    with stage.lock(uuid, wait=wait):
        backups = stage.catalogue(uuid).history.backups
        records = {one.id: stream_record.read(stage.directory(uuid, one.id)) for one in backups}
        later = [
            one.sequence
            for one in backups
            if (record := records[one.id]) is not None
            and (record.begun or "") > (request.since or "")
            and (asked is not Level.DIFFERENTIAL or record.asked is Level.FULL)
        ]
        unknown = [one for one in backups if later and one.sequence >= later[0]]
        for one in reversed(unknown):
            reporter.warning(
                f"Backup {one.id} was committed, but the director's job has failed after that: it is forgotten, and no"
                " later one starts from it."
            )
            removal.take_away(stage.path / uuid / one.id)
        removal.delete_removed(stage.path / uuid)


def _has_full(domain: str, stage: Repository, host: Host) -> bool:
    """Return True if the last full of each disk was made when a full was asked for.

    A director restores the last full job and the differential. An incremental job can have a disk in full, if its base
    could not be trusted: a differential since then would lack what is between the two.
    """
    try:
        uuid = host.domain(domain).uuid
        history = stage.catalogue(uuid).history
    except DomainNotFoundError:
        return False
    devs = {image.dev for one in history.backups for image in one.disks}
    fulls = [history.last_full(dev) for dev in devs]
    records = [stream_record.read(stage.directory(uuid, one.id)) for one in fulls if one is not None]
    return bool(records) and all(record is not None and record.asked is Level.FULL for record in records)
