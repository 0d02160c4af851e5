"""Choose the backup that is restored, and for each disk the backup that it is restored from.

A backup from which the user excluded a disk is not the whole machine: it is never taken silently for one. Neither is
the newest backup of another machine with the same UUID. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vbackup.errors import AmbiguousHostError, ChainError, DiskError, PartialBackupError
from vbackup.model import Backup
from vbackup.repository import hosts
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import History


@dataclass(frozen=True)
class Wanted:
    """What the user asks for."""

    backup_id: str | None = None  #: None: chosen by ``at``
    at: datetime | None = None  #: the newest made at this time or before; None: the newest of all
    host: str | None = None  #: only backups of the host with this name or machine id
    disks: tuple[str, ...] = ()  #: only these; empty: all
    is_mixed: bool = False  #: each disk from its newest backup


@dataclass(frozen=True)
class Choice:
    """What is restored."""

    backup: Backup  #: gives the definition and everything but the disks
    disks: Mapping[str, Backup]  #: for each disk (dev) the backup that it is restored from
    missing: tuple[str, ...]  #: disks of the machine that the backup leaves out and nothing is restored for
    other_hosts: tuple[str, ...]  #: names of the further hosts that have backups of this UUID

    @property
    def is_of_one_moment(self) -> bool:
        """True if all disks are of one backup."""
        return all(backup.id == self.backup.id for backup in self.disks.values())

    @property
    def remarks(self) -> list[str]:
        """Sentences for whoever restores or reads this: what may not fit together, and what else it could be."""
        found = []
        if not self.is_of_one_moment:
            of = ", ".join(f"{dev} of {one.id}" for dev, one in self.disks.items())
            found.append(f"The disks are of different moments ({of}): what spans them may not fit together.")
        if self.other_hosts:
            found.append(
                f"Backup {self.backup.id} was made on host {self.backup.host}; the repository also has backups of this"
                f" domain from {', '.join(self.other_hosts)}."
            )
        return found


def choose(catalogue: Catalogue, wanted: Wanted, *, failed_back: Collection[str] = ()) -> Choice:
    """Return what is restored. ``failed_back``: see vbackup.repository.hosts.break_of.

    Raises ChainError if there is no such backup, AmbiguousHostError if backups of several machines could be meant,
    PartialBackupError if the chosen backup leaves out disks and the user asked neither for it nor for its disks,
    DiskError for a disk that it does not have. The messages name what the user can ask for.
    """
    everything = catalogue.history.backups
    seen = _of_host(catalogue, wanted.host)
    backup = seen.find(wanted.backup_id, wanted.at)
    if wanted.backup_id is None or wanted.is_mixed:
        _refuse_ambiguous(seen.history.backups, failed_back, is_mixed=wanted.is_mixed)
    candidates = [one for one in seen.history.backups if one.sequence <= backup.sequence]
    disks = _disks(backup, candidates, wanted)
    missing = tuple(dev for dev in backup.excluded if dev not in disks) if not wanted.disks else ()
    if missing and not wanted.is_mixed and wanted.backup_id is None:
        broken = {one.id for one in catalogue.incomplete}
        usable = [one for one in candidates if one.id not in broken]
        raise PartialBackupError(
            backup.id,
            missing,
            complete=_newest_complete(usable, backup, missing),
            never_backed_up=[dev for dev in missing if all(one.image(dev) is None for one in candidates)],
        )
    labels = hosts.labels(everything)
    here = backup.host
    others = tuple(labels[host] for host in labels if here is not None and host.is_other_than(here))
    return Choice(backup, disks, missing, others)


def _of_host(catalogue: Catalogue, host: str | None) -> Catalogue:
    """Return the catalogue with the backups of that host only."""
    if host is None:
        return catalogue
    backups = hosts.of_host(catalogue.history.backups, host)
    if not backups:
        known = ", ".join(hosts.labels(catalogue.history.backups).values()) or "no backup names one"
        raise ChainError(f"No backup of this domain is of a host {host!r}; its hosts: {known}.")
    return replace(catalogue, history=History(backups, source_option=catalogue.history.source_option))


def _refuse_ambiguous(backups: Sequence[Backup], failed_back: Collection[str], *, is_mixed: bool) -> None:
    change = hosts.break_of(backups, failed_back=failed_back)
    if change is not None:
        labels = hosts.labels(backups)
        newest = {labels[backup.host]: backup.id for backup in backups if backup.host is not None}
        raise AmbiguousHostError(newest, change.after.id, is_mixed=is_mixed)


def _disks(backup: Backup, candidates: Sequence[Backup], wanted: Wanted) -> dict[str, Backup]:
    devs = [image.dev for image in backup.disks]
    of_machine = [*devs, *(dev for dev in backup.excluded if dev not in devs)]
    found: dict[str, Backup] = {}
    for dev in wanted.disks or (of_machine if wanted.is_mixed else devs):
        having = [one for one in candidates if one.image(dev) is not None]
        if dev in devs:
            found[dev] = backup
        elif wanted.is_mixed and having:
            found[dev] = having[-1]
        elif wanted.disks and wanted.is_mixed:
            known = sorted({image.dev for one in candidates for image in one.disks})
            raise DiskError(dev, f"no backup up to {backup.id} has such a disk; they have {', '.join(known)}.")
        elif wanted.disks:
            other = f" The newest backup before it that has this disk is {having[-1].id}." if having else ""
            raise DiskError(dev, f"backup {backup.id} has no such disk; it has {', '.join(devs)}.{other}")
    return {dev: found[dev] for dev in sorted(found, key=of_machine.index)} if not wanted.disks else found


def _newest_complete(candidates: Sequence[Backup], backup: Backup, missing: Sequence[str]) -> str | None:
    """Return the newest backup that has all disks of this one and those that it leaves out."""
    devs = {*missing, *(image.dev for image in backup.disks)}
    complete = (one.id for one in reversed(candidates) if devs <= {image.dev for image in one.disks})
    return next(complete, None)
