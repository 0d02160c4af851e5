"""Choose backups by time, level, host and state, as ``vbackup list`` is asked to. Does no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from vbackup import names
from vbackup.model import Backup, Level
from vbackup.repository import hosts
from vbackup.repository.condition import Condition, State

_NOT_COMMITTED = frozenset((State.UNFINISHED, State.RUNNING))


@dataclass(frozen=True)
class BackupFilter:
    """What is asked for; all of it together. Both times are inclusive, to the second, as a backup's id has it."""

    since: datetime | None = None
    until: datetime | None = None
    host: str | None = None  #: name or machine id
    levels: Collection[Level] = ()  #: one of these; empty: any
    states: Collection[State] = ()  #: at least one of these; empty: any

    @property
    def is_narrow(self) -> bool:
        """True if anything is asked for."""
        return self != BackupFilter()

    def backups(self, backups: Sequence[Backup], conditions: Mapping[str, Condition]) -> list[Backup]:
        """Return those that are asked for, in the same order; ``conditions`` by id."""
        of_host = backups if self.host is None else hosts.of_host(backups, self.host)
        return [
            backup
            for backup in of_host
            if self._is_in_time(names.stamp(backup.time))
            and (not self.levels or backup.level in self.levels)
            and (not self.states or not set(self.states).isdisjoint(conditions[backup.id].states))
        ]

    def unfinished(self, ids: Sequence[str], running: Collection[str]) -> list[str]:
        """Return the ids of unfinished backups that are asked for; ``running``: those that are being made."""
        return [
            backup_id
            for backup_id in ids
            if self._is_in_time(names.stamp_of(backup_id))
            and (not self.levels or backup_id.partition("-")[2] in {level.value for level in self.levels})
            and (not self.states or (State.RUNNING if backup_id in running else State.UNFINISHED) in self.states)
        ]

    @property
    def wants_committed(self) -> bool:
        """False if only what is no backup yet is asked for."""
        return not self.states or not _NOT_COMMITTED.issuperset(self.states)

    def _is_in_time(self, stamp: str) -> bool:
        """Return whether a time is asked for; stamps are ordered as times."""
        return (self.since is None or stamp >= names.stamp(self.since)) and (
            self.until is None or stamp <= names.stamp(self.until)
        )
