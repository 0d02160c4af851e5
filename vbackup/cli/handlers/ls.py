"""``vbackup ls``: list a directory of a guest in a backup, or its file systems."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import Entry, Listing, LsRequest, parse_address
from vbackup.cli import copies, guest_files, keys, output
from vbackup.cli.arguments import domain_and_words_of, wanted_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Print a directory, one file a line, as 'ls -l' does."""
    domain, words = domain_and_words_of(options)
    if len(words) > 1:
        raise UsageError(f"One path is listed, but {len(words)} are given: {' '.join(words)}.")
    address = parse_address(words[0]) if words else None
    wanted = wanted_of(options, options.backup)
    with (
        context.reporting(domain, is_log=False) as reporter,
        copies.shown(options, context, domain, wanted, reporter=reporter) as (vb, uuid),
    ):
        request = LsRequest(uuid, wanted, address, is_recursive=options.recursive)
        listing = vb.ls(request, keys=keys.of(options.key_file, context.stop), reporter=reporter)
    if context.as_json:
        _print_document(listing, context)
    elif address is None:
        output.table(
            ("FILE SYSTEM", "TYPE", "SIZE"),
            [[each.name, each.type, _size(size, options)] for each, size in listing.file_systems],
        )
    else:
        top = address.path if options.recursive else None
        _print(listing, in_bytes=options.bytes, top=top)
    return Status.DONE


def _size(size_bytes: int, options: argparse.Namespace) -> str:
    return str(size_bytes) if options.bytes else output.size(size_bytes)


def _print(listing: Listing, *, in_bytes: bool, top: str | None) -> None:
    """Print each file; below ``top`` with its path from there."""
    rows = [
        (
            guest_files.mode(each),
            str(each.uid),
            str(each.gid),
            guest_files.size(each, in_bytes=in_bytes),
            output.local_time(each.mtime),
            _shown(each, top),
        )
        for each in listing.entries
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for mode, uid, gid, size, time, name in rows:
        line = f"{mode} {uid:>{widths[1]}} {gid:>{widths[2]}} {size:>{widths[3]}} {time} {name}"
        print(output.plain(line))


def _shown(entry: Entry, top: str | None) -> str:
    name = entry.name if top is None else entry.path[len(top.rstrip("/")) + 1 :] or entry.name
    return name if entry.target is None else f"{name} -> {entry.target}"


def _print_document(listing: Listing, context: Context) -> None:
    backup = listing.backup
    document: dict[str, Any] = {
        "id": backup.id,
        "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
        "file_systems": [
            {"name": each.name, "type": each.type, "size_bytes": size} for each, size in listing.file_systems
        ],
    }
    entries = (dict(guest_files.document(each)) for each in listing.entries)
    context.print_stream("vbackup.ls/1", document, "entries", entries)
