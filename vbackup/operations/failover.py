"""Let a standby take over: ``vbackup failover``. Its links come up, and it starts.

It goes on from the backup that was applied last; what the guest of the original wrote after that is not on it. The
original must not run at the same time: two machines with one identity would answer in a network, so it is asked for,
where that is possible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone

from vbackup.domain import defining, standby_xml
from vbackup.domain.host import Host
from vbackup.domain.standby_xml import State
from vbackup.errors import UnsuitableError, UsageError, VbackupError
from vbackup.operations import standby
from vbackup.operations.standby import Standby
from vbackup.report import Reporter
from vbackup.repository import standbys
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class FailoverRequest:
    """The options of ``vbackup failover``."""

    domain: str  #: name or UUID
    to: str  #: URI of the libvirt that has the standby
    start: bool = True
    is_forced: bool = False  #: also if the original runs
    as_is: bool = False  #: also if the repository has newer backups, whose changes it does not have then
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain


@dataclass(frozen=True)
class FailedOver:
    """A standby that has taken over."""

    name: str
    uuid: str
    uri: str
    backup_id: str  #: that it goes on from
    time: datetime | None  #: of that backup; None if it was removed since
    not_applied: tuple[str, ...]  #: ids of newer backups in the repository, whose changes it does not have
    is_running: bool
    was_active: bool  #: it had taken over before


def run(
    request: FailoverRequest,
    *,
    host: Host,
    original: Host | None,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> FailedOver:
    """Let the standby take over. ``host`` is that of ``request.to``; ``original``: None if it cannot be asked.

    Raises DomainNotFoundError, UnsuitableError (the standby is half applied or older than the newest backup, or the
    original runs), BusyError, and what libvirt's calls raise: the standby is as it was then.
    """
    uuid = repository.find(request.domain)
    with repository.lock(uuid, wait=LockWait(request.wait_lock_s, reporter, stop)):
        found = standby.get(host, uuid, repository)
        standby.refuse_half_applied(found)
        _refuse_running(found, original, request, reporter)
        was_active = found.mark.state is State.ACTIVE
        backups = repository.catalogue(uuid, with_chains=False).history.backups
        applied = next((one for one in backups if one.id == found.mark.backup), None)
        later = [one.id for one in backups if applied is not None and one.sequence > applied.sequence]
        if not was_active:
            standby.refuse_running(found)
            _refuse_older(found, later, request)
            _warn(found, applied.time if applied is not None else None, reporter)
        _take_over(found, request, reporter)
        _record(uuid, request, repository)
        if applied is not None and applied.autostart:
            _start_with_host(found, reporter)
        return FailedOver(
            found.handle.name,
            uuid,
            request.to,
            found.mark.backup,
            None if applied is None else applied.time,
            () if was_active else tuple(later),
            found.handle.is_active(),
            was_active,
        )


def _refuse_running(found: Standby, original: Host | None, request: FailoverRequest, reporter: Reporter) -> None:
    """Raise UnsuitableError if the original runs; say so if nobody could be asked."""
    name = found.handle.name
    if original is None:
        reporter.warning(
            f"Whether the original of {name} runs was not asked: -c URI names its libvirt. Make sure that it does not,"
            " as the two would be one machine in the network."
        )
        return
    handle = next((one for one in original.domains() if one.uuid == found.handle.uuid), None)
    if handle is None:
        return
    if standby_xml.read(handle.definition_xml()) is not None:
        raise UsageError(
            f"{original.real_uri}, given with -c, has a standby of {name}, and not the original: give the libvirt of"
            " the original."
        )
    if handle.is_active() and not request.is_forced:
        raise UnsuitableError(
            f"The original {handle.name} runs at {original.real_uri}: shut it down, back it up once more, and run"
            f" '{standby.replicate(name, request.to)}', so that nothing is lost. --force lets the standby take over"
            " beside it."
        )


def _refuse_older(found: Standby, later: list[str], request: FailoverRequest) -> None:
    """Raise UnsuitableError if the repository has more than the standby."""
    if later and not request.as_is:
        raise UnsuitableError(
            f"The standby {found.handle.name} is as in backup {found.mark.backup}, and the repository has newer ones,"
            f" which were not applied: {', '.join(later)}. '{standby.replicate(found.handle.name, request.to)}' applies"
            " them; --as-is lets the standby take over without them."
        )


def _warn(found: Standby, time: datetime | None, reporter: Reporter) -> None:
    """Say what the standby does not have."""
    since = found.mark.backup if time is None else f"{found.mark.backup} of {time.isoformat(' ', 'seconds')}"
    reporter.warning(
        f"The standby goes on from backup {since}: what the guest of the original has written after that is not on it."
    )


def _record(uuid: str, request: FailoverRequest, repository: Repository) -> None:
    """Record since when it has taken over, for whoever backs up the original meanwhile."""
    record = standbys.find(repository.path / uuid, request.to)
    if record is not None and record.taken_over is None:
        standbys.put(repository.path / uuid, replace(record, taken_over=datetime.now(timezone.utc)))


def _start_with_host(found: Standby, reporter: Reporter) -> None:
    """Let it start with its host, as the original does; it has taken over also without that."""
    try:
        defining.set_autostart(found.handle)
    except VbackupError as err:
        reporter.warning(f"{err} The original has that (autostart).")


def _take_over(found: Standby, request: FailoverRequest, reporter: Reporter) -> None:
    """Let its links up, and start it; if that fails, it is a standby again."""
    before = found.definition()
    if found.mark.state is not State.ACTIVE:
        standby.define(found.handle.host, standby_xml.active(before), found.handle)
        reporter.step(f"Domain {found.handle.name}: its links are up.")
    if not request.start or found.handle.is_active():
        return
    try:
        defining.start(found.handle)
    except VbackupError:
        if not found.handle.is_active():
            standby.define(found.handle.host, before, found.handle)
        raise
    reporter.step(f"Domain {found.handle.name}: started.")
