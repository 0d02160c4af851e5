"""``vbackup list``: print a line per domain, or the backups of one domain or of all, as a table or a tree."""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from vbackup.cli import output
from vbackup.cli.arguments import optional_domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError
from vbackup.model import Backup
from vbackup.repository import hosts, manifest
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.history import History
from vbackup.repository.repository import Repository


@dataclass(frozen=True)
class _Unfinished:
    """The backups of a domain that are not committed."""

    ids: Sequence[str]
    running: Sequence[str]  #: those whose process is at work


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the backups; broken ones are warnings, and make the exit status 6."""
    repository = Repository.open(context.repository_path())
    domain = optional_domain_of(options)
    if options.all and domain is not None:
        raise UsageError("Give a domain or --all, not both.")
    uuids = repository.uuids() if domain is None else repository.find_all(domain)
    unfinished = {uuid: _Unfinished(repository.unfinished(uuid), repository.running(uuid)) for uuid in uuids}
    catalogues = [
        catalogue
        for catalogue in map(repository.catalogue, uuids)
        if catalogue.history.backups or catalogue.broken or unfinished[catalogue.uuid].ids
    ]
    catalogues.sort(key=lambda catalogue: (catalogue.names[-1], catalogue.uuid))
    if options.host is not None:
        catalogues = [_of_host(catalogue, options.host) for catalogue in catalogues]
        catalogues = [catalogue for catalogue in catalogues if catalogue.history.backups]
    if context.as_json:
        context.print_document("vbackup.list/1", _document(repository, catalogues, unfinished))
    elif not catalogues:
        of_host = f" of host {options.host}" if options.host is not None else ""
        print(output.plain(f"No backups{of_host} in {repository.path}{'' if of_host else ' yet'}."))
    elif domain is None and not options.all and not options.tree:
        _print_summary(catalogues, unfinished)
    else:
        _print_backups(catalogues, unfinished, as_tree=options.tree)
    broken = [backup for catalogue in catalogues for backup in catalogue.broken]
    with context.reporting(steps=False) as reporter:
        for backup in broken:
            reporter.warning(backup.sentence)
    return Status.CHAIN if broken else Status.DONE


def _of_host(catalogue: Catalogue, host: str) -> Catalogue:
    """Return the catalogue without the backups of other hosts; broken ones stay, because theirs may be unknown."""
    return replace(catalogue, history=History(hosts.of_host(catalogue.history.backups, host)))


def _document(
    repository: Repository, catalogues: Sequence[Catalogue], unfinished: Mapping[str, _Unfinished]
) -> dict[str, Any]:
    # Merged by time; those of one domain stay in the order of their commits, whatever the clock was set to.
    backups = heapq.merge(*(catalogue.history.backups for catalogue in catalogues), key=lambda backup: backup.time)
    return {
        "repository": {"path": str(repository.path), "id": repository.id},
        "domains": [
            {
                "uuid": catalogue.uuid,
                "name": catalogue.names[-1],
                "names": list(catalogue.names),
                "newest": catalogue.history.backups[-1].id if catalogue.history.backups else None,
                "backups": len(catalogue.history.backups),
                "size_bytes": _size_bytes(catalogue),
                "broken": len(catalogue.broken),
                "unfinished": list(unfinished[catalogue.uuid].ids),
                "running": list(unfinished[catalogue.uuid].running),
                "hosts": [manifest.host_document(host) for host in hosts.hosts(catalogue.history.backups)],
            }
            for catalogue in catalogues
        ],
        "backups": [_row(backup) for backup in backups],
        "broken": [
            {"domain": {"uuid": catalogue.uuid}, "id": backup.id, "reason": backup.reason}
            for catalogue in catalogues
            for backup in catalogue.broken
        ],
    }


def _row(backup: Backup) -> dict[str, Any]:
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
    }


def _size_bytes(catalogue: Catalogue) -> int:
    return sum(backup.size_bytes for backup in catalogue.history.backups)


def _print_summary(catalogues: Sequence[Catalogue], unfinished: Mapping[str, _Unfinished]) -> None:
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
                _state(catalogue, unfinished[catalogue.uuid]),
            )
        )
    output.table(("DOMAIN", "NEWEST", "AGE", "BACKUPS", "SIZE", "STATE"), rows)


def _state(catalogue: Catalogue, unfinished: _Unfinished) -> str:
    remarks = [f"{len(catalogue.broken)} broken"] if catalogue.broken else []
    remarks += ["running"] if unfinished.running else []
    remarks += ["unfinished"] if len(unfinished.ids) > len(unfinished.running) else []
    remarks = remarks or ["ok"]
    of_hosts = hosts.count(catalogue.history.backups)
    remarks += [f"{of_hosts} hosts"] if of_hosts > 1 else []
    return ", ".join(remarks)


def _print_backups(catalogues: Sequence[Catalogue], unfinished: Mapping[str, _Unfinished], *, as_tree: bool) -> None:
    """Print all backups below the name of their domain."""
    for number, catalogue in enumerate(catalogues):
        if number:
            print()
        print(output.plain(f"Domain {catalogue.names[-1]} ({catalogue.uuid})"))
        if catalogue.history.backups:
            (_print_tree if as_tree else _print_table)(catalogue.history.backups)
        for backup_id in unfinished[catalogue.uuid].ids:
            is_running = backup_id in unfinished[catalogue.uuid].running
            print(output.plain(f"{'Running' if is_running else 'Unfinished'}: {backup_id}"))


def _print_table(backups: Sequence[Backup]) -> None:
    labels = hosts.labels(backups)
    has_hosts = len(labels) > 1
    output.table(
        ("ID", "TIME", "SIZE", "CONSISTENCY", *(["HOST"] if has_hosts else []), "DISKS"),
        [
            (
                backup.id,
                output.local_minute(backup.time),
                output.size(backup.size_bytes),
                backup.consistency.value,
                *([labels[backup.host] if backup.host is not None else "-"] if has_hosts else []),
                _disks(backup),
            )
            for backup in backups
        ],
    )


def _disks(backup: Backup) -> str:
    without = f" (without {' '.join(backup.excluded)})" if backup.excluded else ""
    return " ".join(image.dev for image in backup.disks) + without


def _print_tree(backups: Sequence[Backup]) -> None:
    labels = hosts.labels(backups)
    has_hosts = len(labels) > 1
    output.tree(
        [
            (
                backup.id,
                backup.parent,
                f"{backup.id}  {output.local_minute(backup.time)}  {output.size(backup.size_bytes)}"
                + (f"  {labels[backup.host] if backup.host is not None else '-'}" if has_hosts else ""),
            )
            for backup in backups
        ]
    )
