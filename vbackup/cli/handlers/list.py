"""``vbackup list``: print a line per domain, or the backups of one domain or of all, as a table or a tree."""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from vbackup.api import (
    BackupFilter,
    BackupState,
    Condition,
    Connection,
    DomainRecord,
    Protection,
    Repository,
    Verification,
    count_hosts,
    documents,
    host_labels,
    hosts_of,
    unusual,
)
from vbackup.cli import backup_table, copies, output
from vbackup.cli.arguments import optional_domain_of
from vbackup.cli.collector import without_cycles
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError
from vbackup.files import of_link
from vbackup.model import Backup, Level


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the backups; broken ones are warnings, and make the exit status 6."""
    with without_cycles():
        return _run(options, context)


def _run(options: argparse.Namespace, context: Context) -> int:
    with copies.connected(options, context) as (vb, _):
        return _list(options, context, vb)


def _list(options: argparse.Namespace, context: Context, vb: Connection) -> int:
    repository = vb.repository
    domain = optional_domain_of(options)
    wanted = _filter(options)
    is_summary = domain is None and not options.all and not options.tree
    if options.all and domain is not None:
        raise UsageError("Give a domain or --all, not both.")
    if options.columns and (is_summary or options.tree):
        raise UsageError("--columns is for a list of backups: give a domain or --all, and no --tree.")
    records = vb.records(domain, wanted)
    if context.as_json:
        _print_document(repository, records, context)
    elif not records:
        print(output.plain(_none(repository, wanted)))
    elif is_summary:
        _print_summary(records)
    else:
        _print_backups(records, as_tree=options.tree, columns=_columns(options))
    broken = [backup for record in records for backup in record.broken]
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
        states=tuple(map(BackupState, options.state)),
    )


def _columns(options: argparse.Namespace) -> Sequence[str]:
    return list(backup_table.COLUMNS) if "all" in options.columns else options.columns


def _none(repository: Repository, wanted: BackupFilter) -> str:
    if not wanted.is_narrow:
        return f"No backups in {repository.path} yet."
    if wanted == BackupFilter(host=wanted.host):
        return f"No backups of host {wanted.host} in {repository.path}."
    return f"No such backups in {repository.path}."


def _print_document(repository: Repository, records: Sequence[DomainRecord], context: Context) -> None:
    # Merged by time; those of one domain stay in the order of their commits, whatever the clock was set to.
    backups = heapq.merge(*(record.backups for record in records), key=lambda backup: backup.time)
    conditions = {record.uuid: record.conditions for record in records}
    document = {
        "repository": {"path": str(repository.path), "id": repository.id},
        "domains": [_domain_document(record) for record in records],
        "broken": [
            {"domain": {"uuid": record.uuid}, "id": backup.id, "reason": backup.reason}
            for record in records
            for backup in record.broken
        ],
    }
    rows = (_row(backup, conditions[backup.domain_uuid][backup.id]) for backup in backups)
    context.print_stream("vbackup.list/1", document, "backups", rows)


def _domain_document(record: DomainRecord) -> dict[str, Any]:
    return {
        "uuid": record.uuid,
        "name": record.name,
        "names": list(record.catalogue.names),
        "newest": record.backups[-1].id if record.backups else None,
        "backups": len(record.backups),
        "size_bytes": _size_bytes(record),
        "broken": len(record.broken),
        "damaged": _damaged(record),
        "unfinished": list(record.unfinished),
        "running": list(record.running),
        "hosts": [documents.host(host) for host in hosts_of(record.backups)],
    }


def _row(backup: Backup, known: Condition) -> dict[str, Any]:
    return {
        "id": backup.id,
        "level": backup.level.value,
        "parent": backup.parent,
        "time": documents.time(backup.time),
        "size_bytes": backup.size_bytes,
        "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
        "host": None if backup.host is None else documents.host(backup.host),
        "disks": [image.dev for image in backup.disks],
        "excluded": list(backup.excluded),
        "consistency": backup.consistency.value,
        "chain_images": known.chain_images,
        "chain_size_bytes": known.chain_size_bytes,
        "states": [state.value for state in known.states],
        "verification": None if known.verification is None else _verification(known.verification),
        "protection": None if known.protection is None else _protection(known.protection),
        "note": known.note,
        "unusual": [{"dev": dev, "what": what} for dev, what in unusual(backup).items()],
    }


def _verification(found: Verification) -> dict[str, Any]:
    """Return the result of the last verify, without the damage, of which there can be much."""
    return {
        "time": documents.time(found.time),
        "verdict": found.verdict.value,
        "percent": found.percent,
        "damaged_ranges": len(found.damage),
    }


def _protection(found: Protection) -> dict[str, Any]:
    return {"time": None if found.since is None else documents.time(found.since), "reason": found.reason}


def _size_bytes(record: DomainRecord) -> int:
    return sum(backup.size_bytes for backup in record.backups)


def _damaged(record: DomainRecord) -> int:
    return sum(record.conditions[backup.id].state is BackupState.DAMAGED for backup in record.backups)


def _print_summary(records: Sequence[DomainRecord]) -> None:
    """Print one line per domain."""
    now = datetime.now(timezone.utc)
    namesakes = Counter(record.name for record in records)
    rows = []
    for record in records:
        newest = record.backups[-1].time if record.backups else None
        rows.append(
            (
                f"{record.name} ({record.uuid})" if namesakes[record.name] > 1 else record.name,
                output.local_minute(newest) if newest else "-",
                output.age(now - newest) if newest else "-",
                str(len(record.backups)),
                output.size(_size_bytes(record)),
                _state(record),
            )
        )
    output.table(("DOMAIN", "NEWEST", "AGE", "BACKUPS", "SIZE", "STATE"), rows)


def _state(record: DomainRecord) -> str:
    damaged = _damaged(record)
    remarks = [f"{len(record.broken)} broken"] if record.broken else []
    remarks += [f"{damaged} damaged"] if damaged else []
    remarks += ["running"] if record.running else []
    remarks += ["unfinished"] if len(record.unfinished) > len(record.running) else []
    remarks = remarks or ["ok"]
    of_hosts = count_hosts(record.backups)
    remarks += [f"{of_hosts} hosts"] if of_hosts > 1 else []
    return ", ".join(remarks)


def _print_backups(records: Sequence[DomainRecord], *, as_tree: bool, columns: Sequence[str]) -> None:
    """Print all backups below the name of their domain."""
    for number, record in enumerate(records):
        if number:
            print()
        print(output.plain(f"Domain {record.name} ({record.uuid})"))
        if record.backups and as_tree:
            _print_tree(record.backups, record.conditions)
        elif record.backups:
            backup_table.print_table(record.backups, record.conditions, columns)
        for backup_id in record.unfinished:
            print(output.plain(f"{'Running' if backup_id in record.running else 'Unfinished'}: {backup_id}"))
        for backup in record.backups:
            for dev, what in unusual(backup).items():
                output.labelled("Unusual: ", f"{backup.id}: disk {dev}: {what}")


def _print_tree(backups: Sequence[Backup], conditions: Mapping[str, Condition]) -> None:
    labels = host_labels(backups)
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
    remarks = [
        state.value
        for state in known.states
        if state in (BackupState.BROKEN, BackupState.DAMAGED, BackupState.PROTECTED)
    ]
    return f"  {', '.join(remarks)}" if remarks else ""
