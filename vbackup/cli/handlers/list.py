"""``vbackup list``: the backups in a repository, as a table or as the tree they stand on each other in."""

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
    """Print what there is; a broken backup is shown and makes the exit status 6."""
    repository = Repository.open(context.repository_path())
    domain = optional_domain_of(options)
    uuids = repository.uuids() if domain is None else [repository.find(domain)]
    catalogues = [one for one in map(repository.catalogue, uuids) if one.history.backups or one.broken]
    if context.as_json:
        context.print_document("vbackup.list/1", _document(repository, catalogues))
    else:
        for catalogue in catalogues:
            print(output.plain(f"Domain {catalogue.names[-1]} ({catalogue.uuid})"))
            (_print_tree if options.tree else _print_table)(catalogue.history.backups)
        if not catalogues:
            print(f"No backups in {repository.path} yet.")
    broken = [one for catalogue in catalogues for one in catalogue.broken]
    with context.reporting() as reporter:
        for one in broken:
            reporter.warning(f"Backup {one.id} is broken: {one.reason}")
    return Status.CHAIN if broken else Status.DONE


def _document(repository: Repository, catalogues: Sequence[Catalogue]) -> dict[str, Any]:
    # A domain's own order is that of its commits, whatever the clock said.
    backups = heapq.merge(*(catalogue.history.backups for catalogue in catalogues), key=lambda backup: backup.time)
    return {
        "repository": {"path": str(repository.path), "id": repository.id},
        "domains": [{"uuid": one.uuid, "name": one.names[-1], "names": list(one.names)} for one in catalogues],
        "backups": [_row(backup) for backup in backups],
        "broken": [
            {"domain": {"uuid": catalogue.uuid}, "id": one.id, "reason": one.reason}
            for catalogue in catalogues
            for one in catalogue.broken
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
