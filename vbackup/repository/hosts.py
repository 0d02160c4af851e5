"""The hosts that a domain's backups were made on, and whether they can all be of one machine.

A domain that migrates takes its UUID and its bitmaps with it, so its next backup starts from one of the host before. A
copy of a machine that was not given a new UUID has backups in between that start from nothing of the other's:
then the newest backup may be of either machine. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbackup.model import Backup, HostIdentity


def hosts(backups: Sequence[Backup]) -> list[HostIdentity]:
    """Return the hosts that the backups name, each once, in the order of their first backup."""
    return list(dict.fromkeys(backup.host for backup in backups if backup.host is not None))


def labels(backups: Sequence[Backup]) -> dict[HostIdentity, str]:
    """Return what tells the hosts of the backups apart for people: the name, with the machine id if names are equal."""
    found = hosts(backups)
    names = [host.name for host in found]
    return {
        host: host.name if names.count(host.name) == 1 else f"{host.name} (machine id {host.machine_id or 'unknown'})"
        for host in found
    }


def count(backups: Sequence[Backup]) -> int:
    """Return the number of hosts that the backups were made on, as far as that is known; 0 if none is named."""
    distinct: list[HostIdentity] = []
    for host in hosts(backups):
        if all(host.is_other_than(other) for other in distinct):
            distinct.append(host)
    return len(distinct)


def of_host(backups: Sequence[Backup], word: str) -> list[Backup]:
    """Return the backups of the host with this name or machine id."""
    return [
        backup for backup in backups if backup.host is not None and word in (backup.host.name, backup.host.machine_id)
    ]


@dataclass(frozen=True)
class Change:
    """A backup of another host than the one before, which starts from none of that host's."""

    before: Backup
    after: Backup


def break_of(backups: Sequence[Backup]) -> Change | None:
    """Return the first change of host after which the chain does not go on, or None.

    ``backups`` are in the order of their commits. Backups that name no host prove nothing, and are passed over.
    """
    by_id = {backup.id: backup for backup in backups}
    before: Backup | None = None
    for backup in backups:
        if backup.host is None:
            continue
        if before is not None and not _goes_on(backup, before, by_id):
            return Change(before, backup)
        before = backup
    return None


def _goes_on(backup: Backup, before: Backup, by_id: dict[str, Backup]) -> bool:
    """Return True if it is of the same host, or one of the disks starts from a backup of that host."""
    bases = [by_id.get(image.base) for image in backup.disks if image.base is not None]
    assert before.host is not None
    return any(
        one is not None and one.host is not None and not one.host.is_other_than(before.host) for one in (backup, *bases)
    )
