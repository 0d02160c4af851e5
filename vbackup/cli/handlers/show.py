"""``vbackup show``: print the record of a backup."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vbackup.cli import output
from vbackup.cli.arguments import backup_of, domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status
from vbackup.model import Backup
from vbackup.repository import manifest
from vbackup.repository.repository import Repository

#: How many backups at each end of a long chain are printed.
_CHAIN_ENDS = 5


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the record. Raises ChainError for an unknown backup, or if a backup it depends on is missing."""
    repository = Repository.open(context.repository_path())
    backup_id = backup_of(options)
    uuid = context.uuid_of(repository, domain_of(options))
    catalogue = repository.catalogue(uuid)
    history, backup = catalogue.history, catalogue.find(backup_id)
    chains = {image.dev: [link.backup.id for link in history.links(backup.id, image.dev)] for image in backup.disks}
    path = repository.directory(uuid, backup.id)
    if context.as_json:
        document = {**manifest.document(backup), "path": str(path), "chains": chains}
        context.print_document("vbackup.show/1", document)
    else:
        _print(backup, chains, path=str(path))
    return Status.DONE


def _print(backup: Backup, chains: dict[str, list[str]], *, path: str) -> None:
    facts = {
        "Backup": backup.id,
        "Domain": f"{backup.domain_name} ({backup.domain_uuid})",
        "Level": backup.level.value,
        "Parent": backup.parent or "-",
        "Time": output.local_time(backup.time),
        "Consistency": backup.consistency.value + (f", frozen for {backup.frozen_ms} ms" if backup.frozen_ms else ""),
        "Duration": f"{backup.duration_s:.1f} s",
        "Size": output.size(backup.size_bytes),
        "Directory": path,
        "Made by": ", ".join(f"{name} {version}" for name, version in backup.versions.items()),
    }
    if backup.host is not None:
        facts["Host"] = str(backup.host) + (f" (machine id {backup.host.machine_id})" if backup.host.machine_id else "")
    if backup.group is not None:
        members = ", ".join(member.domain_name for member in backup.group.members)
        facts["Group"] = f"{backup.group.id}: {members}; within {backup.group.spread_ms:.1f} ms"
    for name, value in facts.items():
        output.labelled(f"{name + ':':<13}", value)
    print()
    _print_disks(backup)
    for disk in backup.left_out:
        output.labelled("Left out: ", f"{disk.dev} ({disk.reason})")
    for image in backup.disks:
        output.labelled(f"Source of {output.plain(image.dev)}: ", image.source or "unknown")
    for dev, ids in chains.items():
        _print_chain(dev, ids)


def _print_chain(dev: str, ids: Sequence[str]) -> None:
    """Print the backups that hold the disk, one per line, the middle of a long chain as a number."""
    print(f"Chain of {dev}:")
    omitted = len(ids) - 2 * _CHAIN_ENDS
    lines = [*ids] if omitted <= 1 else [*ids[:_CHAIN_ENDS], f"... {omitted} more", *ids[-_CHAIN_ENDS:]]
    for line in lines:
        print(f"  {line}")


def _print_disks(backup: Backup) -> None:
    output.table(
        ("DISK", "LEVEL", "SIZE", "COPIED", "VIRTUAL SIZE", "WHY"),
        [
            (
                image.dev,
                image.level.value,
                output.size(image.file_size_bytes),
                output.size(image.copied_bytes),
                output.size(image.virtual_size_bytes),
                image.reason,
            )
            for image in backup.disks
        ],
    )
