"""``vbackup diff``: print what differs between two backups, in sum and as ranges."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from vbackup import names
from vbackup.api import DiffDisk, Difference, DiffRequest, Extent, ExtentKind, documents
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError
from vbackup.model import Backup

#: By dev; None for a disk that only one of the backups has.
Totals = Mapping[str, "Mapping[ExtentKind, int] | None"]


def run(options: argparse.Namespace, context: Context) -> int:
    """Print what differs. Raises ChainError for an unknown backup, or if a block list is missing or damaged.

    The lists are all read before the first word is printed.
    """
    domain, before, after = _points(options)
    with context.connect() as vb:
        uuid = vb.owner_of(before) if domain is None else context.uuid_of(vb.repository, domain)
        with vb.diff(DiffRequest(uuid, before, after, disks=tuple(options.disk))) as difference:
            totals = {disk.dev: _totals(difference, disk) for disk in difference.disks}
            if context.as_json:
                _print_document(difference, totals, context, with_extents=options.extents)
            else:
                _print(difference, totals, with_extents=options.extents)
    return Status.DONE


def _points(options: argparse.Namespace) -> tuple[str | None, str, str | None]:
    """Return the domain, or None, and the ids A and B, or None. Raises UsageError."""
    words: list[str] = list(options.words)
    domain: str | None = options.domain_option
    if words and domain is None and not names.BACKUP_ID.fullmatch(words[0]):
        domain = words.pop(0)
    if domain == "":
        raise UsageError("The domain name is empty.")
    if not words:
        only = f": {domain!r} is no backup id" if options.words else ""
        raise UsageError(f"No backup given to start from{only}; 'vbackup list DOMAIN' lists ids.")
    if len(words) > 2:  # noqa: PLR2004
        raise UsageError(f"Two backups are compared, but {len(words)} are given: {' '.join(words)}.")
    return domain, words[0], words[1] if words[1:] else None


def _totals(difference: Difference, disk: DiffDisk) -> Mapping[ExtentKind, int] | None:
    if disk.before is None or disk.after is None:
        return None
    with difference.comparison(disk) as comparison:
        return comparison.totals()


def _extents(difference: Difference, disk: DiffDisk) -> Iterator[Extent]:
    if disk.before is not None and disk.after is not None:
        with difference.comparison(disk) as comparison:
            yield from comparison.extents()


def _changed_bytes(totals: Mapping[ExtentKind, int]) -> int:
    return totals[ExtentKind.DATA] + totals[ExtentKind.ZERO] + totals[ExtentKind.NEW]


def _print(difference: Difference, totals: Totals, *, with_extents: bool) -> None:
    before, after = difference.before, difference.after
    print(output.plain(f"Domain {after.domain_name} ({after.domain_uuid})"))
    for word, backup in (("From", before), ("to", after)):
        print(f"{word:<5}{backup.id}  {output.local_minute(backup.time)}")
    has_undecided = any(each is not None and each[ExtentKind.UNDECIDED] for each in totals.values())
    output.table(
        ("DISK", "CHANGED", "TO ZEROS", "FROM ZEROS", *(["UNDECIDED"] if has_undecided else []), "VIRTUAL SIZE"),
        [_row(difference, disk, totals[disk.dev], has_undecided=has_undecided) for disk in difference.disks],
    )
    if has_undecided:
        print("Undecided: the digests of these blocks are of different kinds; the blocks may have changed or not.")
    if with_extents:
        _print_extents(difference)


def _row(
    difference: Difference, disk: DiffDisk, totals: Mapping[ExtentKind, int] | None, *, has_undecided: bool
) -> list[str]:
    size = " -> ".join(dict.fromkeys(output.size(each) for each in disk.size_bytes if each is not None))
    if totals is None:
        backup = difference.before if disk.after is None else difference.after
        return [disk.dev, *["-"] * (3 + has_undecided), f"{size} (only in {backup.id})"]
    shown = [_changed_bytes(totals), totals[ExtentKind.ZERO], totals[ExtentKind.NEW]]
    return [disk.dev, *map(output.size, shown + [totals[ExtentKind.UNDECIDED]] * has_undecided), size]


def _print_extents(difference: Difference) -> None:
    """Print one line for each range, as they are found: there can be millions."""
    print()
    print(f"{'DISK':<6}{'START':>16}{'LENGTH':>16}  NOW")
    for disk in difference.disks:
        for extent in _extents(difference, disk):
            print(f"{disk.dev:<6}{extent.start_bytes:>16}{extent.length_bytes:>16}  {extent.kind.value}")


def _print_document(difference: Difference, totals: Totals, context: Context, *, with_extents: bool) -> None:
    """Print the document; with extents piece by piece, as they are found."""
    after = difference.after
    document: dict[str, Any] = {
        "domain": {"name": after.domain_name, "uuid": after.domain_uuid},
        "before": _point(difference.before),
        "after": _point(after),
        "disks": [_disk_document(disk, totals[disk.dev]) for disk in difference.disks],
    }
    if not with_extents:
        context.print_document("vbackup.diff/1", document)
        return
    pieces = (
        {"dev": disk.dev, **_extent_document(one)} for disk in difference.disks for one in _extents(difference, disk)
    )
    context.print_stream("vbackup.diff/1", document, "extents", pieces)


def _point(backup: Backup) -> dict[str, Any]:
    return {"id": backup.id, "time": documents.time(backup.time)}


def _disk_document(disk: DiffDisk, totals: Mapping[ExtentKind, int] | None) -> dict[str, Any]:
    before_size_bytes, after_size_bytes = disk.size_bytes
    return {
        "dev": disk.dev,
        "before_size_bytes": before_size_bytes,
        "after_size_bytes": after_size_bytes,
        "changed_bytes": None if totals is None else _changed_bytes(totals),
        "to_zeros_bytes": None if totals is None else totals[ExtentKind.ZERO],
        "from_zeros_bytes": None if totals is None else totals[ExtentKind.NEW],
        "undecided_bytes": None if totals is None else totals[ExtentKind.UNDECIDED],
    }


def _extent_document(extent: Extent) -> dict[str, Any]:
    return {"start": extent.start_bytes, "length": extent.length_bytes, "kind": extent.kind.value}
