"""Find files by name in the backups of domains, the newest first: ``vbackup search``.

libguestfs's appliance is started for each backup separately: copies of one file system cannot be mounted beside each
other. A file that is the same in backups that follow each other is reported once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from vbackup.errors import ChainError, InterruptedBySignalError, VbackupError
from vbackup.images import appliance
from vbackup.images.guest import Keys
from vbackup.images.guest_address import Address
from vbackup.images.guest_files import Entry
from vbackup.model import Backup
from vbackup.operations import inside
from vbackup.operations.inside import Inside
from vbackup.report import Reporter
from vbackup.repository import hosts
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class SearchRequest:
    """The options of ``vbackup search``."""

    pattern: str  #: a glob: of the whole path if it has a slash, else of the name
    where: str | None = None  #: only this file system, or this disk
    last: int | None = None  #: only so many backups of each domain
    host: str | None = None


@dataclass(frozen=True)
class Found:
    """A file that matches, in one backup or in several that follow each other, in which it has not changed."""

    address: Address
    entry: Entry
    oldest: str  #: id of the first backup that has it so
    newest: str

    def is_as(self, other: Found) -> bool:
        """True if they are the same file, as far as size, time and mode show it."""
        mine, others = (
            (one.address, one.entry.size_bytes, one.entry.mtime_ns, one.entry.mode) for one in (self, other)
        )
        return mine == others


@dataclass(frozen=True)
class Searched:
    """What was found in the backups of a domain."""

    domain_uuid: str
    domain_name: str
    backups: tuple[str, ...]  #: ids of those that were searched, the newest first
    found: tuple[Found, ...]  #: by the newest backup that has it so, then by path
    failed: tuple[tuple[str, VbackupError], ...]  #: ids of those that could not be searched, with the reason


def run(
    uuid: str, request: SearchRequest, *, keys: Keys, repository: Repository, reporter: Reporter, stop: Stop
) -> Searched:
    """Search the backups of a domain. A backup that cannot be read is a warning, and is in the answer.

    Raises UnsuitableError if guestfish is not installed, ChainError for an unknown host, InterruptedBySignalError.
    """
    points = list(reversed(_points(uuid, request, repository)))
    appliance.refuse_missing()
    open_: dict[Address, Found] = {}  # as they are in the backup that was searched last
    closed: list[Found] = []
    searched, failed = [], []
    for point in points:
        stop.check()
        try:
            with inside.opened(
                uuid,
                Wanted(point.id),
                where=request.where,
                keys=keys,
                repository=repository,
                reporter=reporter,
                stop=stop,
            ) as there:
                here = {one.address: one for one in _matching(there, request, point.id)}
        except InterruptedBySignalError:
            raise
        except VbackupError as err:
            failed.append((point.id, err))
            reporter.warning(f"Backup {point.id} was not searched: {err}")
            here = {}
        else:
            searched.append(point.id)
            reporter.step(f"Backup {point.id}: {len(here)} found")
        closed += [one for address, one in open_.items() if address not in here or not here[address].is_as(one)]
        open_ = {address: _joined(one, open_.get(address)) for address, one in here.items()}
    closed += open_.values()
    order = {point.id: number for number, point in enumerate(points)}
    closed.sort(key=lambda one: (order[one.newest], os.fsencode(str(one.address))))
    return Searched(uuid, repository.name_of(uuid), tuple(searched), tuple(closed), tuple(failed))


def _points(uuid: str, request: SearchRequest, repository: Repository) -> Sequence[Backup]:
    """Return the backups to search, the oldest first."""
    backups: Sequence[Backup] = repository.catalogue(uuid).history.backups
    if request.host is not None:
        backups = hosts.of_host(backups, request.host)
        if not backups:
            raise ChainError(f"No backup of this domain is of a host {request.host!r}.")
    return backups if request.last is None else backups[-request.last :]


def _joined(here: Found, newer: Found | None) -> Found:
    return replace(here, newest=newer.newest) if newer is not None and newer.is_as(here) else here


def _matching(there: Inside, request: SearchRequest, backup_id: str) -> Iterator[Found]:
    matches = matcher(request.pattern)
    for where in there.guest.mounts(request.where):
        for entry in there.files.entries("/", (path for path in there.files.below("/") if matches(f"/{path}"))):
            yield Found(Address(where, entry.path), entry, backup_id, backup_id)


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return what says whether a path, which begins with a slash, matches."""
    if "/" in pattern:
        return lambda path: fnmatchcase(path, pattern)
    return lambda path: fnmatchcase(path.rpartition("/")[2], pattern)
