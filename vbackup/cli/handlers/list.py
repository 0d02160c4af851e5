"""``vbackup list``: print a line per domain, or the backups of one domain or of all, as a table or a tree."""

from __future__ import annotations

import argparse
import gc
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from vbackup.cli import backup_table, output
from vbackup.cli.arguments import optional_domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError
from vbackup.files import of_link
from vbackup.model import Backup, Level
from vbackup.repository import change_watch, condition, hosts, manifest
from vbackup.repository.backup_filter import BackupFilter
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.condition import Condition, State
from vbackup.repository.history import History
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verification


@dataclass(frozen=True)
class _Unfinished:
    """The backups of a domain that are not committed."""

    ids: Sequence[str]
    running: Sequence[str]  #: those whose process is at work


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the backups; broken ones are warnings, and make the exit status 6."""
    with _without_cycles():
        return _run(options, context)


@contextmanager
def _without_cycles() -> Iterator[None]:
    """Spare Python the search for cycles among what is read, which stays until the end: a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _run(options: argparse.Namespace, context: Context) -> int:
    repository = Repository.open(context.repository_path())
    domain = optional_domain_of(options)
    wanted = _filter(options)
    is_summary = domain is None and not options.all and not options.tree
    if options.all and domain is not None:
        raise UsageError("Give a domain or --all, not both.")
    if options.columns and (is_summary or options.tree):
        raise UsageError("--columns is for a list of backups: give a domain or --all, and no --tree.")
    uuids = repository.uuids() if domain is None else repository.find_all(domain)
    unfinished = {uuid: _Unfinished(repository.unfinished(uuid), repository.running(uuid)) for uuid in uuids}
    catalogues = [
        catalogue
        for catalogue in (repository.catalogue(uuid, with_chains=False) for uuid in uuids)
        if catalogue.history.backups or catalogue.broken or unfinished[catalogue.uuid].ids
    ]
    catalogues.sort(key=lambda catalogue: (catalogue.names[-1], catalogue.uuid))
    conditions = {one.uuid: condition.read(one, repository.path / one.uuid) for one in catalogues}
    if wanted.is_narrow:
        unfinished = {uuid: _of_unfinished(one, wanted) for uuid, one in unfinished.items()}
        catalogues = [_narrowed(catalogue, wanted, conditions[catalogue.uuid]) for catalogue in catalogues]
        catalogues = [one for one in catalogues if one.history.backups or _has_more(one, unfinished, wanted)]
    if context.as_json:
        _print_document(repository, catalogues, unfinished, conditions, context)
    elif not catalogues:
        print(output.plain(_none(repository, wanted)))
    elif is_summary:
        _print_summary(catalogues, unfinished, conditions)
    else:
        _print_backups(catalogues, unfinished, conditions, as_tree=options.tree, columns=_columns(options))
    broken = [backup for catalogue in catalogues for backup in catalogue.broken]
    linked = repository.linked() if domain is None else []
    with context.reporting(steps=False) as reporter:
        for backup in broken:
            reporter.warning(backup.sentence)
        for uuid in linked:
            reporter.warning(" ".join(of_link(repository.path / uuid)))
    if broken:
        return Status.CHAIN
    return Status.STORAGE if linked else Status.DONE


def _filter(options: argparse.Namespace) -> BackupFilter:
    if options.since is not None and options.until is not None and options.since > options.until:
        raise UsageError("The time of --since is after that of --until.")
    return BackupFilter(
        options.since,
        options.until,
        options.host,
        levels=tuple(map(Level, options.level)),
        states=tuple(map(State, options.state)),
    )


def _columns(options: argparse.Namespace) -> Sequence[str]:
    return list(backup_table.COLUMNS) if "all" in options.columns else options.columns


def _narrowed(catalogue: Catalogue, wanted: BackupFilter, conditions: Mapping[str, Condition]) -> Catalogue:
    """Return the catalogue with what is asked for; broken backups stay, because it may be unknown what they are."""
    return replace(catalogue, history=History(wanted.backups(catalogue.history.backups, conditions)))


def _of_unfinished(unfinished: _Unfinished, wanted: BackupFilter) -> _Unfinished:
    ids = wanted.unfinished(unfinished.ids, unfinished.running)
    return _Unfinished(ids, [one for one in unfinished.running if one in ids])


def _has_more(catalogue: Catalogue, unfinished: Mapping[str, _Unfinished], wanted: BackupFilter) -> bool:
    """Return True if a state was asked for, and the domain has backups in it that are none, or cannot be read."""
    return bool(wanted.states) and bool(
        unfinished[catalogue.uuid].ids or (State.BROKEN in wanted.states and catalogue.unreadable)
    )


def _none(repository: Repository, wanted: BackupFilter) -> str:
    if not wanted.is_narrow:
        return f"No backups in {repository.path} yet."
    if wanted == BackupFilter(host=wanted.host):
        return f"No backups of host {wanted.host} in {repository.path}."
    return f"No such backups in {repository.path}."


def _print_document(
    repository: Repository,
    catalogues: Sequence[Catalogue],
    unfinished: Mapping[str, _Unfinished],
    conditions: Mapping[str, Mapping[str, Condition]],
    context: Context,
) -> None:
    # Merged by time; those of one domain stay in the order of their commits, whatever the clock was set to.
    backups = heapq.merge(*(catalogue.history.backups for catalogue in catalogues), key=lambda backup: backup.time)
    document = {
        "repository": {"path": str(repository.path), "id": repository.id},
        "domains": [_domain_document(one, unfinished[one.uuid], conditions[one.uuid]) for one in catalogues],
        "broken": [
            {"domain": {"uuid": catalogue.uuid}, "id": backup.id, "reason": backup.reason}
            for catalogue in catalogues
            for backup in catalogue.broken
        ],
    }
    rows = (_row(backup, conditions[backup.domain_uuid][backup.id]) for backup in backups)
    context.print_stream("vbackup.list/1", document, "backups", rows)


def _domain_document(
    catalogue: Catalogue, unfinished: _Unfinished, conditions: Mapping[str, Condition]
) -> dict[str, Any]:
    return {
        "uuid": catalogue.uuid,
        "name": catalogue.names[-1],
        "names": list(catalogue.names),
        "newest": catalogue.history.backups[-1].id if catalogue.history.backups else None,
        "backups": len(catalogue.history.backups),
        "size_bytes": _size_bytes(catalogue),
        "broken": len(catalogue.broken),
        "damaged": _damaged(catalogue, conditions),
        "unfinished": list(unfinished.ids),
        "running": list(unfinished.running),
        "hosts": [manifest.host_document(host) for host in hosts.hosts(catalogue.history.backups)],
    }


def _row(backup: Backup, known: Condition) -> dict[str, Any]:
    return {
        "id": backup.id,
        "level": backup.level.value,
        "parent": backup.parent,
        "time": manifest.iso(backup.time),
        "size_bytes": backup.size_bytes,
        "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
        "host": None if backup.host is None else manifest.host_document(backup.host),
        "disks": [image.dev for image in backup.disks],
        "excluded": list(backup.excluded),
        "consistency": backup.consistency.value,
        "chain_images": known.chain_images,
        "chain_size_bytes": known.chain_size_bytes,
        "states": [state.value for state in known.states],
        "verification": None if known.verification is None else _verification(known.verification),
        "protection": None if known.protection is None else _protection(known.protection),
        "note": known.note,
        "unusual": [{"dev": dev, "what": what} for dev, what in change_watch.unusual(backup).items()],
    }


def _verification(found: Verification) -> dict[str, Any]:
    """Return the result of the last verify, without the damage, of which there can be much."""
    return {
        "time": manifest.iso(found.time),
        "verdict": found.verdict.value,
        "percent": found.percent,
        "damaged_ranges": len(found.damage),
    }


def _protection(found: Protection) -> dict[str, Any]:
    return {"time": None if found.since is None else manifest.iso(found.since), "reason": found.reason}


def _size_bytes(catalogue: Catalogue) -> int:
    return sum(backup.size_bytes for backup in catalogue.history.backups)


def _damaged(catalogue: Catalogue, conditions: Mapping[str, Condition]) -> int:
    return sum(conditions[backup.id].state is State.DAMAGED for backup in catalogue.history.backups)


def _print_summary(
    catalogues: Sequence[Catalogue],
    unfinished: Mapping[str, _Unfinished],
    conditions: Mapping[str, Mapping[str, Condition]],
) -> None:
    """Print one line per domain."""
    now = datetime.now(timezone.utc)
    namesakes = Counter(catalogue.names[-1] for catalogue in catalogues)
    rows = []
    for catalogue in catalogues:
        name, backups = catalogue.names[-1], catalogue.history.backups
        newest = backups[-1].time if backups else None
        rows.append(
            (
                f"{name} ({catalogue.uuid})" if namesakes[name] > 1 else name,
                output.local_minute(newest) if newest else "-",
                output.age(now - newest) if newest else "-",
                str(len(backups)),
                output.size(_size_bytes(catalogue)),
                _state(catalogue, unfinished[catalogue.uuid], _damaged(catalogue, conditions[catalogue.uuid])),
            )
        )
    output.table(("DOMAIN", "NEWEST", "AGE", "BACKUPS", "SIZE", "STATE"), rows)


def _state(catalogue: Catalogue, unfinished: _Unfinished, damaged: int) -> str:
    remarks = [f"{len(catalogue.broken)} broken"] if catalogue.broken else []
    remarks += [f"{damaged} damaged"] if damaged else []
    remarks += ["running"] if unfinished.running else []
    remarks += ["unfinished"] if len(unfinished.ids) > len(unfinished.running) else []
    remarks = remarks or ["ok"]
    of_hosts = hosts.count(catalogue.history.backups)
    remarks += [f"{of_hosts} hosts"] if of_hosts > 1 else []
    return ", ".join(remarks)


def _print_backups(
    catalogues: Sequence[Catalogue],
    unfinished: Mapping[str, _Unfinished],
    conditions: Mapping[str, Mapping[str, Condition]],
    *,
    as_tree: bool,
    columns: Sequence[str],
) -> None:
    """Print all backups below the name of their domain."""
    for number, catalogue in enumerate(catalogues):
        if number:
            print()
        print(output.plain(f"Domain {catalogue.names[-1]} ({catalogue.uuid})"))
        backups, known = catalogue.history.backups, conditions[catalogue.uuid]
        if backups and as_tree:
            _print_tree(backups, known)
        elif backups:
            backup_table.print_table(backups, known, columns)
        for backup_id in unfinished[catalogue.uuid].ids:
            is_running = backup_id in unfinished[catalogue.uuid].running
            print(output.plain(f"{'Running' if is_running else 'Unfinished'}: {backup_id}"))
        for backup in backups:
            for dev, what in change_watch.unusual(backup).items():
                output.labelled("Unusual: ", f"{backup.id}: disk {dev}: {what}")


def _print_tree(backups: Sequence[Backup], conditions: Mapping[str, Condition]) -> None:
    labels = hosts.labels(backups)
    has_hosts = len(labels) > 1
    output.tree(
        [
            (
                backup.id,
                backup.parent,
                f"{backup.id}  {output.local_minute(backup.time)}  {output.size(backup.size_bytes)}"
                + (f"  {labels[backup.host] if backup.host is not None else '-'}" if has_hosts else "")
                + _remark(conditions[backup.id]),
            )
            for backup in backups
        ]
    )


def _remark(known: Condition) -> str:
    """Return the states in which not every backup is."""
    remarks = [state.value for state in known.states if state in (State.BROKEN, State.DAMAGED, State.PROTECTED)]
    return f"  {', '.join(remarks)}" if remarks else ""
