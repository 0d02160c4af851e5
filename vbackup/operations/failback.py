"""Bring a domain back from its standby to the original: ``vbackup failback``.

The standby is off by now. A backup of it, an incremental on the one that it went on from, goes into the repository like
every other. With that the standby is a standby again, as at that backup; then the original's disks are rolled back to
it, by writing only what differs. If that fails, nothing is lost: the standby can take over again at once, and the same
command goes on with the original.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vbackup.domain import defining, standby_xml
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.standby_xml import State
from vbackup.errors import UnsuitableError, UsageError
from vbackup.operations import backup, replicate, restore_in_place, rollback, standby
from vbackup.operations.backup import BackupRequest
from vbackup.operations.replicate import ReplicateRequest
from vbackup.operations.restore_in_place import InPlaceRequest, RestoredInPlace
from vbackup.operations.standby import Standby
from vbackup.report import Reporter
from vbackup.repository import chosen, standbys
from vbackup.repository.choice import Wanted
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class FailbackRequest:
    """The options of ``vbackup failback``."""

    domain: str  #: name or UUID
    standby: str  #: URI of the libvirt that has the standby
    start: bool = False  #: start the original when it is as the standby was
    exclusive: bool = False  #: no other host uses the images of the two
    speed_bytes_s: int | None = None  #: of each disk
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain


@dataclass(frozen=True)
class FailedBack:
    """An original that is as its standby was."""

    backup_id: str  #: of the standby
    uri: str  #: of the libvirt of the standby
    original: RestoredInPlace
    is_started: bool


def run(
    request: FailbackRequest, *, host: Host, original: Host, repository: Repository, reporter: Reporter, stop: Stop
) -> FailedBack:
    """Bring the standby's disks back to the original. ``host`` is that of ``request.standby``.

    Raises DomainNotFoundError (libvirt has no such original, or no standby), UnsuitableError (one of the two runs, or
    the standby has not taken over), and what backup.run, replicate.run and restore_in_place.run raise.
    """
    uuid = repository.find(request.domain)
    handle = _original(uuid, original, host)
    found = standby.get(host, uuid, repository)
    _refuse_running(handle, original)
    record = standbys.find(repository.path / uuid, request.standby)
    pending = None if record is None else record.failback
    if found.mark.state is State.ACTIVE:
        backup_id = _backed_up(request, found, host=host, repository=repository, reporter=reporter, stop=stop)
    elif pending is not None:
        backup_id = pending
        if found.mark.state is State.HALF_APPLIED:
            _applied(request, uuid, pending, host=host, repository=repository, reporter=reporter, stop=stop)
    else:
        raise UnsuitableError(
            f"The standby {found.handle.name} at {request.standby} has not taken over, so it has nothing that the"
            " original has not."
        )
    wanted = InPlaceRequest(
        uuid,
        Wanted(backup_id),
        exclusive=request.exclusive,
        speed_bytes_s=request.speed_bytes_s,
        wait_lock_s=request.wait_lock_s,
    )
    done = restore_in_place.run(wanted, host=original, repository=repository, reporter=reporter, stop=stop)
    _record(request, uuid, None, done=backup_id, repository=repository, reporter=reporter, stop=stop)
    if request.start:
        defining.start(handle)
        reporter.step(f"Domain {handle.name}: started.")
    return FailedBack(backup_id, request.standby, done, request.start)


def _original(uuid: str, original: Host, host: Host) -> DomainHandle:
    """Return the original. Raises DomainNotFoundError, UsageError."""
    handle = original.domain(uuid)
    if standby_xml.read(handle.definition_xml()) is not None:
        raise UsageError(
            f"{original.real_uri} has a standby of {handle.name}, and not the original: name the libvirt of the"
            f" original with -c, and that of the standby ({host.real_uri}) with --from."
        )
    return handle


def _refuse_running(handle: DomainHandle, original: Host) -> None:
    """Raise UnsuitableError if the disks of the original may not be written."""
    if handle.is_active():
        raise UnsuitableError(
            f"The original {handle.name} runs at {original.real_uri}: shut it down first. Its disks become as those of"
            " the standby are, and what it has written since the failover is lost."
        )
    rollback.refuse_running(handle)


def _backed_up(
    request: FailbackRequest,
    found: Standby,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> str:
    """Back the standby up, let it be a standby as at that backup, and return the id. Raises UnsuitableError."""
    name = found.handle.name
    if found.handle.is_active():
        raise UnsuitableError(
            f"The standby {name} runs at {request.standby}: shut it down first, with"
            f" '{found.handle.virsh('shutdown')}', so that nothing is written after its backup."
        )
    made = backup.run(
        BackupRequest(
            found.handle.uuid,
            exclusive=request.exclusive,
            speed_bytes_s=request.speed_bytes_s,
            wait_lock_s=request.wait_lock_s,
        ),
        host=host,
        repository=repository,
        reporter=reporter,
        stop=stop,
    )
    _record(request, made.domain_uuid, made.id, repository=repository, reporter=reporter, stop=stop)
    _applied(request, made.domain_uuid, made.id, host=host, repository=repository, reporter=reporter, stop=stop)
    return made.id


def _applied(
    request: FailbackRequest,
    uuid: str,
    backup_id: str,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> None:
    """Let the standby be one again, as at that backup, which its disks are like already."""
    asked = ReplicateRequest(uuid, request.standby, exclusive=request.exclusive, speed_bytes_s=request.speed_bytes_s)
    with (
        repository.lock(uuid, wait=LockWait(request.wait_lock_s, reporter, stop)),
        chosen.held(repository, uuid, Wanted(backup_id), stop=stop) as point,
        replicate.link_to(request.standby, host, stop) as link,
    ):
        now = standby.get(host, uuid, repository)
        replicate.apply(asked, point, now, host=host, repository=repository, reporter=reporter, stop=stop, link=link)


def _record(
    request: FailbackRequest,
    uuid: str,
    failback: str | None,
    *,
    done: str | None = None,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> None:
    """Record what the original is to get, or that it has it (``done``)."""
    with repository.lock(uuid, wait=LockWait(request.wait_lock_s, reporter, stop)):
        record = standbys.find(repository.path / uuid, request.standby)
        if record is not None:
            was = record.failed_back
            standbys.put(repository.path / uuid, replace(record, failback=failback, failed_back=done or was))
