"""Remove points at a target that no rule keeps: decide for all, then delete, the last first, each manifest first.

The rules are those of ``vbackup prune`` (vbackup.repository.retention). Images at a target are not merged, since that
would mean to fetch and to send them: a point on which a kept one depends stays, and says so. Whole chains go when their
last point does, so ``vbackup copy --full-every`` decides how long they get.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from vbackup import names
from vbackup.copies import claim, lock_rule, points
from vbackup.copies import target as targets
from vbackup.copies.ledger import Known
from vbackup.copies.points import There
from vbackup.copies.target import MANIFEST, UPLOAD, Listing, Target
from vbackup.errors import ChainError, NeededError
from vbackup.model import Backup
from vbackup.operations.copy import locked
from vbackup.report import Reporter
from vbackup.repository import retention
from vbackup.repository.history import History
from vbackup.repository.lock import LockWait
from vbackup.repository.retention import Rules
from vbackup.stop import Stop
from vbackup.stores.store import Deletion, StoredObject

LOCKED = "the target does not allow to delete it yet"
_UNREADABLE = "its manifest cannot be read"


@dataclass(frozen=True)
class CopyPruneRequest:
    """The options of ``vbackup prune --at`` for one domain."""

    uuid: str
    rules: Rules
    remove: tuple[str, ...] = ()  #: instead of rules: ids of the points to remove
    dry_run: bool = False
    take_over: bool = False  #: claims of others at the target are of processes that are gone
    wait_lock_s: float = 0.0  #: for another vbackup of this machine that works on the domain there


@dataclass(frozen=True)
class CopyLine:
    """A point at a target, what happens to it, and why."""

    id: str
    time: datetime | None  #: None if its manifest cannot be read
    level: str | None
    size_bytes: int  #: of its objects
    is_kept: bool
    reasons: tuple[str, ...]
    is_locked: bool = False  #: it stays because the target does not allow to delete it


@dataclass(frozen=True)
class CopiesPruned:
    """What was done, or would be."""

    uuid: str
    domain_name: str
    lines: tuple[CopyLine, ...]  #: oldest first
    left_objects: int = 0  #: of points that are gone, which the target does not allow to delete yet
    rests: int = 0  #: objects that were deleted of unfinished copies and removals

    @property
    def removed(self) -> tuple[CopyLine, ...]:
        """The points that go."""
        return tuple(line for line in self.lines if not line.is_kept)

    @property
    def freed_bytes(self) -> int:
        """The room that it frees, in bytes."""
        return sum(line.size_bytes for line in self.removed)


def run(request: CopyPruneRequest, *, known: Known, reporter: Reporter, stop: Stop) -> CopiesPruned:
    """Remove the points that are not to be kept. That the target forbids a deletion is in the answer, and no error.

    Raises BusyError if another vbackup copies or removes points of the domain there, ChainError for a point to remove
    that is unknown, NeededError for one that has to stay, StorageError, InterruptedBySignalError: then every point is
    whole or gone, and the same command goes on.
    """
    if request.dry_run:
        decided, history = _decide(request, targets.listing(known.target, request.uuid), known, stop)
        _check_lock(decided, history, known, reporter)
        return decided
    directory = known.ledger.directory_of(request.uuid)
    with (
        locked(directory, request.uuid, LockWait(request.wait_lock_s, reporter, stop, request.uuid)),
        claim.claimed(known.target, request.uuid, directory, take_over=request.take_over) as listed,
    ):
        decided, history = _decide(request, listed, known, stop)
        _check_lock(decided, history, known, reporter)
        return _carry_out(decided, history, listed, known=known, reporter=reporter, stop=stop)


# decide


def _check_lock(decided: CopiesPruned, history: History, known: Known, reporter: Reporter) -> None:
    """Warn if the target locks objects, and not for as long as these rules keep points."""
    days = known.target.store.lock_days()
    if days is None:
        return
    kept = {line.id for line in decided.lines if line.is_kept}
    with suppress(ChainError):  # of points that are damaged something else is said
        wrong = lock_rule.broken(
            days, history, [one for one in history.backups if one.id in kept], name=known.target.name
        )
        if wrong is not None:
            reporter.warning(wrong)


def _decide(request: CopyPruneRequest, listed: Listing, known: Known, stop: Stop) -> tuple[CopiesPruned, History]:
    there = points.read(known, listed, stop=stop)
    history = History([point.backup for point in there.points.values()])
    held = _held(there, listed)
    fates = (
        _asked(request.remove, there, history, held, name=known.target.name)
        if request.remove
        else _by_rules(request.rules, there, held)
    )
    kept = {one for one, reasons in fates.items() if reasons is not None}
    needed = retention.dependents(history, kept)
    lines = []
    for one in sorted(listed.points, key=names.stamp_of):
        backup = there.points[one].backup if one in there.points else None
        size_bytes = sum(each.size_bytes for each in listed.points[one].values())
        reasons = fates[one]
        if reasons is None and one in needed:
            if request.remove:
                raise NeededError(one, [f"{needed[one]} depends on it"], f"Remove {needed[one]} too, or keep both.")
            reasons = (f"{needed[one]} depends on it",)
        lines.append(_line(one, backup, size_bytes, reasons))
    name = next((point.backup.domain_name for point in reversed(list(there.points.values()))), request.uuid)
    return CopiesPruned(request.uuid, name, tuple(lines)), history


def _line(backup_id: str, backup: Backup | None, size_bytes: int, reasons: tuple[str, ...] | None) -> CopyLine:
    return CopyLine(
        backup_id,
        None if backup is None else backup.time,
        None if backup is None else backup.level.value,
        size_bytes,
        reasons is not None,
        (retention.BEYOND,) if reasons is None else reasons,
    )


def _by_rules(rules: Rules, there: There, held: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...] | None]:
    """Return the reasons to keep each point; None for one that goes."""
    backups = [point.backup for point in there.points.values()]
    verdicts = retention.decide(backups, rules, now=datetime.now(timezone.utc), held=held)
    fates: dict[str, tuple[str, ...] | None] = dict.fromkeys(there.unreadable, (_UNREADABLE,))
    fates.update((one.backup.id, one.reasons if one.is_kept else None) for one in verdicts)
    return fates


def _held(there: There, listed: Listing) -> dict[str, tuple[str, ...]]:
    """Return why points stay whatever the rules say: nobody knows what an unreadable later one depends on.

    Later by its id, or by when the target got it: the clock of the host may have been set back between the two.
    """
    stored = {one: objects[MANIFEST].modified for one, objects in listed.points.items()}
    held: dict[str, tuple[str, ...]] = {}
    for one in there.points:
        later = [
            other
            for other in there.unreadable
            if names.stamp_of(other) >= names.stamp_of(one) or stored[other] >= stored[one]
        ]
        if later:
            held[one] = (f"{min(later)}, whose manifest cannot be read, may depend on it",)
    return held


def _asked(
    asked: Sequence[str], there: There, history: History, held: Mapping[str, tuple[str, ...]], *, name: str
) -> dict[str, tuple[str, ...] | None]:
    """Return the fates if just these go; ``name``: of the target. Raises ChainError, NeededError."""
    newest = history.backups[-1].id if history.backups else None
    for one in asked:
        if one not in there.ids:
            raise ChainError(
                f"No backup {one!r} of this domain at {name}; 'vbackup list DOMAIN --from {shlex.quote(name)}' lists"
                " them."
            )
        reasons = [*held.get(one, ()), *(["it is the newest"] if one == newest else [])]
        if reasons:
            raise NeededError(one, reasons, "")
    return {one: None if one in asked else ("not asked for",) for one in there.ids}


# do


def _carry_out(
    decided: CopiesPruned, history: History, listed: Listing, *, known: Known, reporter: Reporter, stop: Stop
) -> CopiesPruned:
    target = known.target
    stay: dict[str, str] = {}
    left = 0
    for line in _last_first(decided.removed, history):
        stop.check()
        if line.id in stay:
            continue
        objects = dict(listed.points[line.id])
        manifest = objects.pop(MANIFEST)
        if target.store.delete(manifest.key) is Deletion.KEPT:
            stay[line.id] = LOCKED
            stay.update(
                (one, f"{line.id} depends on it") for one in retention.dependents(history, {line.id}) if one not in stay
            )
            continue
        known.ledger.drop(decided.uuid, line.id)
        left += _delete(objects, target)
        reporter.step(f"Removed backup {line.id} from {target.name}.")
    rests = _remove_rests(decided, history, listed, target, reporter)
    lines = tuple(
        replace(line, is_kept=True, reasons=(stay[line.id],), is_locked=stay[line.id] == LOCKED)
        if not line.is_kept and line.id in stay
        else line
        for line in decided.lines
    )
    return replace(decided, lines=lines, left_objects=left, rests=rests)


def _last_first(lines: Sequence[CopyLine], history: History) -> list[CopyLine]:
    """Return the points so that each comes before those that it depends on, whatever the clocks said then.

    What an unreadable one depends on is not known: it comes right after those that depend on it, else first.
    """
    places = {backup.id: float(number) for number, backup in enumerate(history.backups)}
    for number, backup in enumerate(history.backups):
        for image in backup.disks:
            if image.base is not None:
                places.setdefault(image.base, number - 0.5)
    return sorted(lines, key=lambda line: places.get(line.id, math.inf), reverse=True)


def _delete(objects: Mapping[str, StoredObject], target: Target) -> int:
    """Delete objects, and return how many the target keeps."""
    return sum(target.store.delete(each.key) is Deletion.KEPT for each in objects.values())


def _remove_rests(decided: CopiesPruned, history: History, listed: Listing, target: Target, reporter: Reporter) -> int:
    """Delete what a removal that was killed has left, and unfinished copies that no copy goes on with; count them.

    A removal begins with the last of a chain. So what others depend on is no rest of one: its manifest was lost, and
    the images are still needed. As long as a manifest cannot be read, nobody knows what depends on what.
    """
    newest = max((names.stamp_of(line.id) for line in decided.lines), default=None)
    needed = {image.base for one in history.backups for image in one.disks}
    is_known = {line.id for line in decided.lines} <= {one.id for one in history.backups}
    count = 0
    for backup_id, objects in listed.unfinished.items():
        if backup_id in needed:
            reporter.warning(
                f"Backup {backup_id} has no manifest at {target.name}, but others there depend on it, so its objects"
                " stay. Put its manifest.json back, from another copy, or remove those that depend on it."
            )
            continue
        if not is_known:
            continue
        is_copy = any(name.startswith(UPLOAD) for name in objects)
        if not is_copy or (newest is not None and names.stamp_of(backup_id) < newest):
            count += len(objects) - _delete(objects, target)
    for each in listed.released:  # claims of those who may not delete anything
        target.store.delete(each.key)
    return count
