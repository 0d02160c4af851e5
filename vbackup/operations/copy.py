"""Copy points of a domain to a target: decide which and in which form, then bring one after the other, oldest first.

A point that is at the target is not looked at again: neither its images there nor those in the repository are read.
vbackup.copies.planning decides, vbackup.copies.upload brings a point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from vbackup.copies import claim, holding, lock_rule, points, staging
from vbackup.copies import planning as plans
from vbackup.copies import target as targets
from vbackup.copies.ledger import Known, Ledger
from vbackup.copies.planning import Plan, PointCopy
from vbackup.copies.target import Listing, Target
from vbackup.copies.upload import Means, ReplanError, upload
from vbackup.errors import BusyError, ChainError, IdentityError, InterruptedBySignalError
from vbackup.report import Reporter
from vbackup.repository import lock
from vbackup.repository.history import History
from vbackup.repository.lock import LockWait
from vbackup.repository.read_rate import ReadRate
from vbackup.repository.repository import COPIES, Repository
from vbackup.stop import Stop
from vbackup.stores.sealed import Keys
from vbackup.stores.store import Store

#: Objects of a point that are sent at a time.
PARALLEL_OBJECTS = 4
#: How often a domain is planned again because its backups have changed.
_ATTEMPTS = 100
_NO_KEYS = Keys()


@dataclass(frozen=True)
class CopyRequest:
    """The options of ``vbackup copy`` for one domain."""

    uuid: str
    since: datetime | None = None  #: all points made then or later (default: those newer than the newest there)
    full_every: int | None = None  #: the longest chain of images at the target
    bytes_s: int | None = None  #: limit of all objects together
    parallel: int = PARALLEL_OBJECTS  #: objects of a point at a time
    immutable_days: int | None = None  #: points in a directory cannot be removed for so long after they were copied
    dry_run: bool = False
    take_over: bool = False  #: claims of others at the target are of processes that are gone
    wait_lock_s: float = 0.0  #: for another vbackup of this repository that copies points of the domain there


@dataclass(frozen=True)
class CopiedPoint:
    """A point that was brought to the target, or would be."""

    id: str
    time: datetime
    forms: Mapping[str, str]  #: of each image, by dev: as-it-is, joined or full
    bases: Mapping[str, str | None]  #: what each depends on there, by dev
    size_bytes: int  #: of what was sent; in a dry run, at most
    objects: int  #: that were sent, without the manifest
    found_objects: int = 0  #: that an interrupted run had sent


@dataclass(frozen=True)
class Copied:
    """What was done, or would be."""

    uuid: str
    domain_name: str
    points: tuple[CopiedPoint, ...]  #: oldest first
    there: tuple[str, ...] = ()  #: ids of points that the target had
    passed: tuple[str, ...] = ()  #: ids of points that are older than the newest there, so that they are not copied
    skipped: Mapping[str, str] = field(default_factory=dict)  #: why others cannot be copied, by id

    @property
    def size_bytes(self) -> int:
        """The bytes of all objects that were sent."""
        return sum(point.size_bytes for point in self.points)


def run(
    request: CopyRequest,
    *,
    repository: Repository,
    store: Store,
    keys: Keys = _NO_KEYS,
    reporter: Reporter,
    stop: Stop,
) -> Copied:
    """Copy the points that the target does not have. A dry run writes nothing to the target.

    ``keys``: of a target that is, or becomes, encrypted.

    Raises ChainError if an image to copy is damaged, or the target has another backup under an id; BusyError if another
    vbackup copies or removes points of the domain there; UsageError if there are recipients and the target is not
    encrypted, or the other way round, or if nothing can be immutable there; StorageError, NoSpaceError,
    InterruptedBySignalError. The points before are complete then, and the next run goes on.
    """
    if request.dry_run:
        return _dry_run(request, repository=repository, store=store, keys=keys, reporter=reporter, stop=stop)
    held = None if request.immutable_days is None else holding.refuse_impossible(store)
    target = targets.opened_for(store, repository.ids, create=True, keys=keys)
    known = known_of(repository, target)
    directory = known.ledger.directory_of(request.uuid)
    known.ledger.note_place(target.name)
    name = repository.name_of(request.uuid)
    with (
        going_on("what was sent is kept, and the same command goes on"),
        locked(directory, name, LockWait(request.wait_lock_s, reporter, stop, name)),
        claim.claimed(target, request.uuid, directory, take_over=request.take_over) as listed,
    ):
        staging.clear(target, directory, listed.points)
        means = Means(
            repository,
            known,
            ReadRate(request.bytes_s, check=stop.check),
            request.parallel,
            reporter,
            stop,
        )
        plan, done = _copy_all(request, listed, means)
        _tell_lock(known, request.uuid, reporter, stop)
        if held is not None and request.immutable_days is not None:
            holding.hold(targets.listing(target, request.uuid), request.immutable_days, target=target, directory=held)
    for backup_id, reason in plan.skipped.items():
        reporter.warning(f"Backup {backup_id} cannot be copied: {reason}")
    there = tuple(one for one in plan.there if one not in {point.id for point in done})
    return Copied(request.uuid, name, tuple(done), there, plan.passed, plan.skipped)


def _copy_all(request: CopyRequest, listed: Listing, means: Means) -> tuple[Plan, list[CopiedPoint]]:
    """Bring all points to the target; return the last plan, and what was brought.

    What is merged or removed in the repository meanwhile changes the plan of the rest. Raises BusyError if that never
    ends.
    """
    target, done = means.known.target, list[CopiedPoint]()
    for _ in range(_ATTEMPTS):
        plan = _plan(
            request, means.known, listed, repository=means.repository, reporter=means.reporter, stop=means.stop
        )
        try:
            for copy in plan.copies:
                means.stop.check()
                sent = upload(copy, listed.unfinished.get(copy.backup.id, {}), means)
                done.append(_copied(copy, sent.sent_bytes, sent.objects, sent.found_objects))
                means.reporter.step(f"Copied backup {copy.backup.id} to {target.name}.")
        except ReplanError:
            listed = targets.listing(target, request.uuid)
        else:
            return plan, done
    raise BusyError("The backups are merged or removed all the time; run the same command again.")


def _dry_run(
    request: CopyRequest, *, repository: Repository, store: Store, keys: Keys, reporter: Reporter, stop: Stop
) -> Copied:
    """Return what would be copied. A place that is empty, or not there, would become a target."""
    history = repository.catalogue(request.uuid).history
    if store.size(targets.MARKER) is None:
        targets.refuse_other(store)
        plan = plans.plan(history, {}, since=request.since, full_every=request.full_every)
    else:
        target = targets.opened_for(store, repository.ids, create=False, keys=keys)
        listed = targets.listing(target, request.uuid)
        known = known_of(repository, target)
        plan = _plan(request, known, listed, repository=repository, reporter=reporter, stop=stop)
    would = [_copied(copy, sum(disk.size_bytes for disk in copy.disks), _objects(copy)) for copy in plan.copies]
    return Copied(request.uuid, repository.name_of(request.uuid), tuple(would), plan.there, plan.passed, plan.skipped)


def _plan(
    request: CopyRequest, known: Known, listed: Listing, *, repository: Repository, reporter: Reporter, stop: Stop
) -> Plan:
    history = repository.catalogue(request.uuid).history
    there = points.read(known, listed, stop=stop)
    sealed = [one for one, err in there.unreadable.items() if isinstance(err, IdentityError)]
    if sealed:
        reporter.warning(
            f"Of {len(sealed)} points at {known.target.name}, such as {sealed[-1]}, this machine knows only the names:"
            " they are encrypted, and it has not copied them, or has lost the record of that. Nothing that is copied"
            " now depends on them, so a full goes there; with --identity, they would be read."
        )
    return plans.plan(
        history,
        there.points,
        unknown=frozenset(there.unreadable),
        since=request.since,
        full_every=request.full_every,
    )


def _tell_lock(known: Known, uuid: str, reporter: Reporter, stop: Stop) -> None:
    """Say for how long the target locks objects, and warn if that is too short for the chains of images there."""
    days = known.target.store.lock_days()
    if days is None:
        return
    reporter.step(f"{known.target.name} locks new objects for {days} days.")
    listed = targets.listing(known.target, uuid)
    there = [point.backup for point in points.read(known, listed, stop=stop).points.values()]
    history = History(there)
    with suppress(ChainError):  # of a point that is damaged 'verify' says what is wrong
        longest = lock_rule.span(history, there)
        # For how long backups are kept, only 'prune --at' knows; it checks the rest of the rule.
        if longest >= timedelta(days=days):
            reporter.warning(
                f"{known.target.name} locks objects for {days} days, but chains of images there last"
                f" {longest.days} days: the full that a new backup depends on is not locked any more. Copy a full more"
                " often (--full-every), or lock objects for longer."
            )


def _copied(copy: PointCopy, size_bytes: int, objects: int, found_objects: int = 0) -> CopiedPoint:
    return CopiedPoint(
        copy.backup.id,
        copy.backup.time,
        {disk.dev: disk.form.value for disk in copy.disks},
        {disk.dev: disk.base for disk in copy.disks},
        size_bytes,
        objects,
        found_objects,
    )


def _objects(copy: PointCopy) -> int:
    return len(copy.backup.digests) + 2 * len(copy.disks)


def known_of(repository: Repository, target: Target) -> Known:
    """Return a target with what a repository knows of it."""
    return Known(target, Ledger(repository.path / COPIES / target.id))


@contextmanager
def going_on(state: str) -> Iterator[None]:
    """Let the error of a signal that ends the block say in which state it leaves everything."""
    try:
        yield
    except InterruptedBySignalError as err:
        raise InterruptedBySignalError(err.signum, state=state) from err


@contextmanager
def locked(directory: Path, name: str, wait: LockWait) -> Iterator[None]:
    """Have a domain of a target for the block, against other processes of this repository. Raises BusyError."""
    fd = lock.wait_for(directory, name, wait)
    try:
        yield
    finally:
        lock.release(fd)
