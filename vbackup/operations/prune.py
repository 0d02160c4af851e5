"""Remove the backups that no rule keeps: decide for all of them first, then do what was decided.

A dry run is the first half, so it shows what the second half does. vbackup.repository.retention has the rules. Whatever
they say, these stay: what is protected, the newest, what the next backup starts from, what is being read, what is
broken (it may be the only copy, and nobody can say what is in it), and what a broken or unfinished backup depends on.
Of the others, those that nothing kept depends on are simply removed; one on which kept backups depend gives its data to
them (vbackup.operations.consolidation), or stays if that is not wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from vbackup import names
from vbackup.errors import BusyError, NeededError, StorageError
from vbackup.model import Backup
from vbackup.operations import consolidation
from vbackup.operations.prune_merges import Consolidator, Merge
from vbackup.report import Reporter
from vbackup.repository import freed, removal, retention, stays
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.repository.retention import Rules
from vbackup.repository.stays import Facts
from vbackup.stop import Stop

ASKED = "asked for"
NOT_ASKED = "not asked for"


@dataclass(frozen=True)
class PruneRequest:
    """The options of ``vbackup prune`` for one domain."""

    uuid: str
    rules: Rules
    remove: tuple[str, ...] = ()  #: instead of rules: ids of the backups to remove
    dry_run: bool = False
    wait_lock_s: float = 0.0  #: for another vbackup that works on the domain


@dataclass(frozen=True)
class Line:
    """A backup, what happens to it, and why."""

    id: str
    time: datetime | None  #: None if its manifest cannot be read
    level: str | None
    size_bytes: int  #: room that its files take
    is_kept: bool
    reasons: tuple[str, ...]
    heirs: tuple[str, ...] = ()  #: the backups that take over its data


@dataclass(frozen=True)
class Pruning:
    """What is done, or would be."""

    uuid: str
    domain_name: str
    lines: tuple[Line, ...]  #: oldest first
    merge: Merge | None
    merged_bytes: int = 0  #: room that is free when the merge is done
    busy: Mapping[str, str] = field(default_factory=dict)  #: why backups did not become fulls, by id
    has_recovered: bool = False  #: what a killed run left was finished or undone before

    @property
    def removed(self) -> tuple[Line, ...]:
        """The backups that go."""
        return tuple(line for line in self.lines if not line.is_kept)

    @property
    def freed_bytes(self) -> int:
        """The room that it frees, in bytes; blocks that files share are counted in each."""
        return sum(line.size_bytes for line in self.removed if not line.heirs) + self.merged_bytes


def run(
    request: PruneRequest,
    *,
    repository: Repository,
    consolidator: Consolidator | None,
    reporter: Reporter,
    stop: Stop,
) -> Pruning:
    """Remove what is not to be kept, and return what was done; or what would be, in a dry run.

    Without a ``consolidator``, backups stay on which others depend. A dry run, too, finishes what a killed run left.
    Raises BusyError if another vbackup works on the domain, ChainError for a backup to remove that is unknown or has to
    stay, StorageError, NoSpaceError, InterruptedBySignalError: then every backup is whole or gone, and the same command
    goes on.
    """
    uuid = request.uuid
    with repository.lock(uuid, wait=LockWait(request.wait_lock_s, reporter, stop)):
        _warn_without_locks(repository, uuid, reporter)
        recovered = consolidation.recover(repository, uuid, reporter=reporter, stop=stop)
        for failure in removal.delete_removed(repository.path / uuid):
            reporter.warning(f"A removed backup still takes room, because it cannot be deleted: {failure}.")
        pruning = replace(_plan(request, repository, consolidator), has_recovered=bool(recovered))
        return pruning if request.dry_run else _carry_out(pruning, repository, consolidator, reporter, stop)


def _warn_without_locks(repository: Repository, uuid: str, reporter: Reporter) -> None:
    if not repository.locks(uuid):
        reporter.warning(
            f"The filesystem of {repository.path} does not lock files (flock), so vbackup cannot tell whether another"
            " one reads or removes backups. Run nothing else with this domain at the same time."
        )


# decide


@dataclass(frozen=True)
class _Fate:
    """Whether a backup is kept, and why."""

    is_kept: bool
    reasons: tuple[str, ...]


def _plan(request: PruneRequest, repository: Repository, consolidator: Consolidator | None) -> Pruning:
    facts = stays.read(repository, request.uuid)
    catalogue = facts.catalogue
    fates = _fates_of_asked(request.remove, facts) if request.remove else _fates_by_rules(request.rules, facts)
    needed = retention.dependents(catalogue.history, {one for one, fate in fates.items() if fate.is_kept})
    inner = [one for one, fate in fates.items() if not fate.is_kept and one in needed]
    if request.remove:
        _refuse_needed(inner, needed, facts, can_merge=consolidator is not None)
    if consolidator is None:
        fates.update((one, _Fate(True, (f"{needed[one]} depends on it",))) for one in inner)
        inner = []
    merge, merged_bytes = None, 0
    if consolidator is not None:
        rest = _without(catalogue, {one for one, fate in fates.items() if not fate.is_kept and one not in inner})
        merge = consolidator.plan(rest, inner)
        fates.update((one, _Fate(True, (reason,))) for one, reason in merge.kept.items())
        given = [one for one in inner if one not in merge.kept]
        merged_bytes = freed.by_merging(repository, request.uuid, rest.history, given) - merge.extra_bytes
    heirs = {} if merge is None else merge.heirs
    lines = [replace(line, heirs=tuple(heirs.get(line.id, ()))) for line in _lines(repository, catalogue, fates)]
    return Pruning(
        request.uuid,
        catalogue.names[-1],
        tuple(lines),
        None if merge is None or merge.is_empty else merge,
        merged_bytes,
    )


def _fates_by_rules(rules: Rules, facts: Facts) -> dict[str, _Fate]:
    backups = facts.catalogue.history.backups
    whole = [backup for backup in backups if backup.id not in facts.broken]
    held = {backup.id: facts.reasons_to_stay(backup.id) for backup in whole}
    verdicts = retention.decide(
        whole, rules, now=datetime.now(timezone.utc), held=held, uncounted=facts.protected.keys()
    )
    fates = {one: _Fate(True, (f"broken, so it counts for no rule: {why}",)) for one, why in facts.broken.items()}
    fates.update((one.backup.id, _Fate(one.is_kept, one.reasons)) for one in verdicts)
    return fates


def _fates_of_asked(asked: Collection[str], facts: Facts) -> dict[str, _Fate]:
    """Return the fates if just these are removed. Raises ChainError, BusyError."""
    catalogue = facts.catalogue
    known = [*(one.id for one in catalogue.unreadable), *(one.id for one in catalogue.history.backups)]
    newest = next((one.id for one in reversed(catalogue.history.backups) if one.id not in facts.broken), None)
    for backup_id in asked:
        if backup_id not in known:
            catalogue.history.get(backup_id)  # its error names the remedy
        reasons = facts.reasons_to_stay(backup_id, but=asked)
        if backup_id in facts.in_use:
            raise BusyError(
                f"Backup {backup_id} is being read by another vbackup; nothing was removed. Run the same command again"
                " when that has ended."
            )
        reasons += [f"it is the {retention.NEWEST}"] if backup_id == newest else []
        if reasons:
            ends = f"'vbackup unprotect {backup_id}' ends that." if backup_id in facts.protected else ""
            remedy = ends or ("It can go when there is a newer one." if backup_id == newest else "")
            raise NeededError(backup_id, reasons, remedy)
    return {one: _Fate(False, (ASKED,)) if one in asked else _Fate(True, (NOT_ASKED,)) for one in known}


def _refuse_needed(inner: Sequence[str], needed: Mapping[str, str], facts: Facts, *, can_merge: bool) -> None:
    """Raise NeededError if a backup that is asked for cannot go because of those that depend on it."""
    for backup_id in inner:
        by = needed[backup_id]
        if not can_merge:
            raise NeededError(backup_id, [f"{by} depends on it"], "Without --consolidate never, that gets its data.")
        if backup_id in facts.broken:
            raise NeededError(
                backup_id, [f"it is broken, and {by} depends on it"], f"Remove {by} too, if neither can be repaired."
            )


def _without(catalogue: Catalogue, ids: Collection[str]) -> Catalogue:
    """Return the catalogue as it is when these backups are gone."""
    history = catalogue.history.without(ids)
    return replace(
        catalogue,
        history=history,
        unreadable=tuple(one for one in catalogue.unreadable if one.id not in ids),
        incomplete=tuple(one for one in catalogue.incomplete if one.id not in ids),
    )


def _lines(repository: Repository, catalogue: Catalogue, fates: Mapping[str, _Fate]) -> list[Line]:
    """Return a line for each backup; those that cannot be read stand where their ids say."""
    backups: Mapping[str, Backup] = {backup.id: backup for backup in catalogue.history.backups}
    order = list(backups)
    for broken in catalogue.unreadable:
        later = (place for place, one in enumerate(order) if names.stamp_of(one) > names.stamp_of(broken.id))
        order.insert(next(later, len(order)), broken.id)
    return [
        Line(
            one,
            backups[one].time if one in backups else None,
            backups[one].level.value if one in backups else None,
            removal.allocated_bytes(repository.directory(catalogue.uuid, one)),
            fates[one].is_kept,
            fates[one].reasons,
        )
        for one in order
    ]


# do


def _carry_out(
    pruning: Pruning, repository: Repository, consolidator: Consolidator | None, reporter: Reporter, stop: Stop
) -> Pruning:
    """Remove the backups, the newest first: none is ever there without those that it depends on.

    One that somebody has begun to read meanwhile stays, with all that it depends on.
    """
    domain_directory = repository.path / pruning.uuid
    why_kept: dict[str, str] = {}
    for line in reversed(pruning.removed):
        stop.check()
        if line.heirs or line.id in why_kept:
            continue  # removed when they have its data, or not at all
        if removal.take_away(repository.directory(pruning.uuid, line.id)):
            reporter.step(f"Removed backup {line.id}: {', '.join(line.reasons)}.")
            continue
        needed = retention.dependents(repository.catalogue(pruning.uuid).history, {line.id})
        why_kept.update((one, f"{line.id} depends on it") for one in needed)
        why_kept[line.id] = stays.IN_USE
        reporter.warning(f"Backup {line.id} stays: another vbackup has begun to read it. The next prune removes it.")
    failures = removal.delete_removed(domain_directory)
    merge, busy = pruning.merge, pruning.busy
    if merge is not None and not why_kept.keys().isdisjoint(merge.heirs):
        why_kept.update(
            (one, "not merged now: another vbackup has begun to read one that depends on it or on others")
            for one in merge.heirs
            if one not in why_kept
        )
        merge = None
    if merge is not None and consolidator is not None:
        stop.check()
        carried = consolidator.carry_out(merge)
        merge, busy = carried.merge, carried.busy
        why_kept.update(carried.kept)
        for backup_id, reason in busy.items():
            reporter.warning(f"Backup {backup_id} did not become a full: {reason}.")
        failures = removal.delete_removed(domain_directory)
    if failures:
        raise StorageError(
            f"Backups were removed, but their room is not free, because they cannot be deleted: {'; '.join(failures)}."
            " Delete them by hand, or run the same command again when that is possible."
        )
    return replace(
        pruning,
        lines=tuple(
            replace(line, is_kept=True, reasons=(why_kept[line.id],), heirs=())
            if not line.is_kept and line.id in why_kept
            else line
            for line in pruning.lines
        ),
        merge=merge,
        merged_bytes=pruning.merged_bytes if merge is not None else 0,
        busy=busy,
    )
