"""``vbackup usage``: print where the room goes, by domain or by backup."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from vbackup.api import BackupUsage, DomainUsage, Leftover, Repository, Room, Usage, UsageRequest, documents, total_room
from vbackup.cli import output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status
from vbackup.files import of_link


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the room of the domains, or of their backups."""
    words = domain_words_of(options)
    vb = context.connect()
    repository = vb.repository
    uuids = [uuid for word in words for uuid in repository.find_all(word)]
    is_summary = not words and not options.all
    request = UsageRequest(tuple(dict.fromkeys(uuids)) if words else None, with_freed=context.as_json or not is_summary)
    found = vb.usage(request)
    if context.as_json:
        context.print_document("vbackup.usage/1", _document(repository, found))
    elif is_summary:
        _print_summary(found)
    else:
        _print_backups(found)
    linked = [] if words else repository.linked()
    with context.reporting(steps=False) as reporter:
        for uuid in linked:
            reporter.warning(" ".join(of_link(repository.path / uuid)))
    return Status.STORAGE if linked else Status.DONE


def _print_summary(found: Usage) -> None:
    """Print a line for each domain, the largest first."""
    namesakes = Counter(one.name for one in found.domains)
    rows = [
        (
            f"{one.name} ({one.uuid})" if namesakes[one.name] > 1 else one.name,
            str(len(one.backups)),
            *_room(one.room, found),
            output.size(total_room(each.room for each in one.leftovers).own_bytes) if one.leftovers else "-",
        )
        for one in sorted(found.domains, key=lambda one: (-one.room.own_bytes, one.name, one.uuid))
    ]
    if rows:
        output.table(("DOMAIN", "BACKUPS", *_room_headings(found), "UNFINISHED"), rows)
    for other in found.others:
        print(output.plain(f"{other.name}: {output.size(other.room.own_bytes)}"))
    _print_total(found)


def _print_backups(found: Usage) -> None:
    """Print a line for each backup, below the name of its domain."""
    for domain in found.domains:
        print(output.plain(f"Domain {domain.name} ({domain.uuid})"))
        if domain.backups:
            output.table(
                ("ID", *_room_headings(found), "PRUNING FREES"),
                [(one.id, *_room(one.room, found), _freed(one)) for one in domain.backups],
            )
        for leftover in domain.leftovers:
            state = "running" if leftover.is_running else "unfinished"
            print(output.plain(f"{leftover.name} ({state}): {output.size(leftover.room.own_bytes)}"))
        print()
    _print_total(found)


def _print_total(found: Usage) -> None:
    file_system, room = found.file_system, found.room
    shared = f", {output.size(room.shared_bytes)} of it shared" if file_system.has_reflinks else ""
    print(f"Total: {output.size(room.own_bytes)}{shared}.")
    print(
        f"Free on the filesystem{f' ({file_system.kind})' if file_system.kind else ''}:"
        f" {output.size(file_system.free_bytes)} of {output.size(file_system.size_bytes)}."
    )


def _room_headings(found: Usage) -> list[str]:
    return ["SIZE", *(["SHARED"] if found.file_system.has_reflinks else [])]


def _room(room: Room, found: Usage) -> list[str]:
    shared = [output.size(room.shared_bytes)] if found.file_system.has_reflinks else []
    return [output.size(room.own_bytes), *shared]


def _freed(one: BackupUsage) -> str:
    return "-" if one.freed_bytes is None else output.size(one.freed_bytes)


def _document(repository: Repository, found: Usage) -> dict[str, Any]:
    file_system = found.file_system
    return {
        "repository": {"path": str(repository.path), "id": repository.id},
        "filesystem": {
            "type": file_system.kind,
            "size_bytes": file_system.size_bytes,
            "free_bytes": file_system.free_bytes,
            "has_reflinks": file_system.has_reflinks,
        },
        **_room_document(found.room, found),
        "domains": [_domain_document(one, found) for one in found.domains],
        "others": [_leftover_document(one, found) for one in found.others],
    }


def _domain_document(domain: DomainUsage, found: Usage) -> dict[str, Any]:
    return {
        "uuid": domain.uuid,
        "name": domain.name,
        **_room_document(domain.room, found),
        "backups": [
            {
                "id": one.id,
                "time": None if one.backup is None else documents.time(one.backup.time),
                **_room_document(one.room, found),
                "freed_bytes": one.freed_bytes,
            }
            for one in domain.backups
        ],
        "leftovers": [{**_leftover_document(one, found), "running": one.is_running} for one in domain.leftovers],
    }


def _leftover_document(one: Leftover, found: Usage) -> dict[str, Any]:
    return {"name": one.name, **_room_document(one.room, found)}


def _room_document(room: Room, found: Usage) -> dict[str, Any]:
    return {
        "own_bytes": room.own_bytes,
        "shared_bytes": room.shared_bytes if found.file_system.has_reflinks else None,
    }
