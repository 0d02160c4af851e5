"""Say what the standbys of domains are like, and how far they are behind: ``vbackup replicate --status``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

from vbackup.domain.host import Host
from vbackup.domain.standby_xml import State
from vbackup.errors import HostUnreachableError, VbackupError
from vbackup.operations import standby
from vbackup.repository import standbys
from vbackup.repository.repository import Repository
from vbackup.repository.standbys import Record


class Condition(Enum):
    """What a standby is, as far as that can be found out."""

    READY = "ready"
    HALF_APPLIED = "half-applied"  #: cannot be started until 'vbackup replicate' has ended it
    ACTIVE = "active"  #: has taken over
    STARTED = "started"  #: runs, without a failover
    MISSING = "missing"  #: libvirt has no such standby, as when the first run was killed
    UNREACHABLE = "unreachable"  #: libvirt does not answer
    UNKNOWN = "unknown"  #: libvirt has another domain there


@dataclass(frozen=True)
class StandbyStatus:
    """One standby."""

    name: str
    uuid: str
    uri: str
    directory: Path
    condition: Condition
    is_running: bool
    backup_id: str | None  #: that it is as, or was as before one was half applied
    time: datetime | None  #: of that backup; None if there is none, or it was removed
    applied: datetime | None  #: when it was applied
    behind: tuple[str, ...]  #: ids of newer backups
    failback: str | None  #: id of the backup that the original still has to get
    reason: str | None = None  #: why the condition is not known better, for people


def run(
    uuids: Sequence[str], repository: Repository, connect: Callable[[str], AbstractContextManager[Host]]
) -> list[StandbyStatus]:
    """Return the standbys of these domains. ``connect`` opens a libvirt by its URI. Raises ChainError, StorageError."""
    return [
        _status(uuid, record, repository, connect) for uuid in uuids for record in standbys.read(repository.path / uuid)
    ]


def _status(
    uuid: str, record: Record, repository: Repository, connect: Callable[[str], AbstractContextManager[Host]]
) -> StandbyStatus:
    condition, is_running, backup_id, reason = _asked(uuid, record, repository, connect)
    backups = repository.catalogue(uuid, with_chains=False).history.backups
    applied = next((one for one in backups if one.id == backup_id), None)
    behind = [one.id for one in backups if applied is None or one.sequence > applied.sequence]
    return StandbyStatus(
        repository.name_of(uuid),
        uuid,
        record.uri,
        record.directory,
        condition,
        is_running,
        backup_id,
        None if applied is None else applied.time,
        record.applied,
        tuple(behind),
        record.failback,
        reason,
    )


def _asked(
    uuid: str, record: Record, repository: Repository, connect: Callable[[str], AbstractContextManager[Host]]
) -> tuple[Condition, bool, str | None, str | None]:
    """Ask libvirt; return the condition, whether it runs, the backup, and the reason."""
    try:
        with connect(record.uri) as host:
            found = standby.find(host, uuid, repository)
            if found is None:
                return Condition.MISSING, False, None, None
            is_running, mark = found.handle.is_active(), found.mark
    except HostUnreachableError as err:
        return Condition.UNREACHABLE, False, record.backup, str(err)
    except VbackupError as err:
        return Condition.UNKNOWN, False, record.backup, str(err)
    if mark.state is State.HALF_APPLIED:
        return Condition.HALF_APPLIED, is_running, record.backup, None
    if mark.state is State.ACTIVE:
        return Condition.ACTIVE, is_running, mark.backup, None
    return (Condition.STARTED if is_running else Condition.READY), is_running, mark.backup, None
