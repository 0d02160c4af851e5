"""``vbackup list``: print the backups in a repository, as a table or as the tree of what depends on what."""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from typing import Any

from vbackup.cli import output
from vbackup.cli.arguments import optional_domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status
from vbackup.model import Backup
from vbackup.repository import manifest
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the backups; broken ones are warnings, and make the exit status 6."""
    repository = Repository.open(context.repository_path())
    domain = optional_domain_of(options)
    uuids = repository.uuids() if domain is None else [repository.find(domain)]
    catalogues = [
        catalogue for catalogue in map(repository.catalogue, uuids) if catalogue.history.backups or catalogue.broken
    ]
    if context.as_json:
        context.print_document("vbackup.list/1", _document(repository, catalogues))
    else:
        for catalogue in catalogues:
            print(output.plain(f"Domain {catalogue.names[-1]} ({catalogue.uuid})"))
            (_print_tree if options.tree else _print_table)(catalogue.history.backups)
        if not catalogues:
            print(f"No backups in {repository.path} yet.")
    broken = [backup for catalogue in catalogues for backup in catalogue.broken]
    with context.reporting() as reporter:
        for backup in broken:
            reporter.warning(f"Backup {backup.id} is broken: {backup.reason}")
    return Status.CHAIN if broken else Status.DONE


def _document(repository: Repository, catalogues: Sequence[Catalogue]) -> dict[str, Any]:
    # Merged by time; those of one domain stay in the order of their commits, whatever the clock was set to.
    backups = heapq.merge(*(catalogue.history.backups for catalogue in catalogues), key=lambda backup: backup.time)
    return {
        "repository": {"path": str(repository.path), "id": repository.id},
        "domains": [
            {"uuid": catalogue.uuid, "name": catalogue.names[-1], "names": list(catalogue.names)}
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
        "disks": [image.dev for image in backup.disks],
        "consistency": backup.consistency.value,
    }


def _print_table(backups: Sequence[Backup]) -> None:
    output.table(
        ("ID", "LEVEL", "TIME", "SIZE", "CONSISTENCY", "DISKS"),
        [
            (
                backup.id,
                backup.level.value,
                output.local_time(backup.time),
                output.size(backup.size_bytes),
                backup.consistency.value,
                " ".join(image.dev for image in backup.disks),
            )
            for backup in backups
        ],
    )


def _print_tree(backups: Sequence[Backup]) -> None:
    output.tree(
        [
            (
                backup.id,
                backup.parent,
                f"{backup.id}  {output.local_time(backup.time)}  {output.size(backup.size_bytes)}",
            )
            for backup in backups
        ]
    )
