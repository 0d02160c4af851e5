"""The hosts that a domain's backups were made on, and whether they can all be of one machine.

A domain that migrates takes its UUID and its bitmaps with it, so its next backup starts from one of the host before. A
copy of a machine that was not given a new UUID has backups in between that start from nothing of the other's:
then the newest backup may be of either machine, and each goes on from the newest of its own host. Where disks of one
host were restored to the newest backup of the other, the next backup starts from that: it is one machine again,
whatever both have done before. A failback does that, and is on record, so that no next backup is needed. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from vbackup.model import Backup, HostIdentity
from vbackup.repository.history import History, Start


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


def alone(history: History, host: HostIdentity) -> History | None:
    """Return the history without the backups of other hosts; None if there are no others.

    Where another host has another machine with the same UUID, it is that of the machine on this host. Its images can
    depend on backups that only the whole history has.
    """
    others = [one.id for one in history.backups if one.host is not None and one.host.is_other_than(host)]
    return history.without(others) if others else None


def starts(history: History, host: HostIdentity, dev: str, *, of_full: bool, on_disk: Collection[str]) -> list[Start]:
    """Return the checkpoints that the next backup of a disk may start from, as History.starts does.

    After those come the ones of this host alone: if the other machine has made the newest backup, only its disk has
    that bitmap. The token in the name of a bitmap shows that it is what it seems; but an end mark on the image can be
    that of another backup, so none of these is the latest.
    """
    usual = history.starts(dev, of_full=of_full, on_disk=on_disk)
    own = alone(history, host)
    further = [] if own is None else own.starts(dev, of_full=of_full, on_disk=on_disk)
    known = {start.bitmap for start in usual}
    return [*usual, *(replace(start, is_latest=False) for start in further if start.bitmap not in known)]


@dataclass(frozen=True)
class Change:
    """A backup of another host than the one before, which starts from none of that host's."""

    before: Backup
    after: Backup


def break_of(backups: Sequence[Backup], *, failed_back: Collection[str] = ()) -> Change | None:
    """Return the first change of host after which the chain does not go on, also not later; None without one.

    ``backups`` are in the order of their commits. Backups that name no host prove nothing, and are passed over.
    ``failed_back``: the ids of backups of standbys that the originals got by a failback. From then on the two are one
    machine, whatever the next backup starts from.
    """
    by_id = {backup.id: backup for backup in backups}
    breaks: list[Change] = []
    before: Backup | None = None
    for number, backup in enumerate(backups):
        if backup.host is None:
            continue
        breaks = [one for one in breaks if not _joins(backup, one, backups[:number])]
        was_here = before is not None and before.id in failed_back and _was_here(backup, backups[:number])
        if before is not None and not was_here and not _goes_on(backup, before, by_id):
            breaks.append(Change(before, backup))
        if backup.id in failed_back:
            breaks = [one for one in breaks if not _is_of(one.before, backup) and not _is_of(one.after, backup)]
        before = backup
    return breaks[0] if breaks else None


def _joins(backup: Backup, change: Change, earlier: Sequence[Backup]) -> bool:
    """Return True if a backup of one of the two hosts starts from the newest that the other has: it was restored there.

    An older one proves nothing: a copy of a machine has the bitmaps that the machine had when it was copied.
    """
    for own, other in ((change.before, change.after), (change.after, change.before)):
        if _is_of(own, backup) and not _is_of(other, backup):
            newest = next((one for one in reversed(earlier) if _is_of(other, one)), other)
            return any(image.base == newest.id for image in backup.disks)
    return False


def _was_here(backup: Backup, earlier: Sequence[Backup]) -> bool:
    """Return True if its host has backups that are older: if those are another machine's, there was a break before."""
    return any(_is_of(one, backup) for one in earlier)


def _is_of(one: Backup, other: Backup) -> bool:
    """Return True if the two backups are of one host, and name it."""
    return one.host is not None and other.host is not None and not one.host.is_other_than(other.host)


def _goes_on(backup: Backup, before: Backup, by_id: dict[str, Backup]) -> bool:
    """Return True if it is of the same host, or one of the disks starts from a backup of that host."""
    bases = [by_id.get(image.base) for image in backup.disks if image.base is not None]
    assert before.host is not None
    return any(
        one is not None and one.host is not None and not one.host.is_other_than(before.host) for one in (backup, *bases)
    )
