"""``vbackup check``: look through a repository, and repair it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vbackup.api import Checked, Connection, Place, Repair, Repaired, Severity, Trouble, connect
from vbackup.cli import output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, error_document

_HEADINGS = {Severity.DAMAGE: "Damage", Severity.STORAGE: "Storage", Severity.WARNING: "Warning"}


def run(options: argparse.Namespace, context: Context) -> int:
    """Check, and repair if that is asked for; the exit status is that of what is wrong at the end."""
    words = domain_words_of(options)
    if not options.repair and (options.copies or options.dry_run):
        raise UsageError("--from and --dry-run need --repair.")
    with context.connect() as vb:
        copies = [connect(repository=Path(copy)).repository for copy in options.copies]
        if any(copy.path == vb.repository.path for copy in copies):
            raise UsageError(f"--from {vb.repository.path} is the repository itself; give a copy of it.")
        uuids = [context.uuid_of(vb.repository, word) for word in words] or None
        done = Repaired([], {})
        with context.reporting() as reporter:
            if options.repair:
                done = vb.repair(uuids, copies=copies, dry_run=options.dry_run, reporter=reporter)
            checked = vb.check(uuids, reporter=reporter)
        if context.as_json:
            context.print_document("vbackup.check/1", _document(checked, done, dry_run=options.dry_run))
        else:
            _print(checked, done.repairs, context, vb)
    if checked.status is Status.DONE and done.failed:
        return next(iter(done.failed.values())).status
    return checked.status


def _document(checked: Checked, done: Repaired, *, dry_run: bool) -> dict[str, Any]:
    place = checked.place
    return {
        "status": int(checked.status),
        "storage": {
            "filesystem": place.filesystem,
            "free_bytes": place.free_bytes,
            "size_bytes": place.size_bytes,
            "locks": place.locks,
            "reflinks": place.reflinks,
            "exchanges": place.exchanges,
            "encrypted": place.encrypted,
        },
        "domains": [
            {"domain": {"uuid": one.uuid}, "backups": one.backups, "images": one.images} for one in checked.domains
        ],
        "findings": [_finding(trouble) for trouble in checked.troubles],
        "dry_run": dry_run,
        "repairs": [{"domain": {"uuid": one.uuid}, "what": one.what, "done": one.is_done} for one in done.repairs],
        "failed": [
            {"domain": {"uuid": uuid}, "message": str(err), "error": error_document(err)}
            for uuid, err in done.failed.items()
        ],
    }


def _finding(trouble: Trouble) -> dict[str, Any]:
    return {
        "severity": trouble.severity.value,
        "kind": trouble.kind.value,
        "domain": {"uuid": trouble.uuid} if trouble.uuid is not None else None,
        "backup": trouble.backup,
        "dev": trouble.dev,
        "path": str(trouble.path) if trouble.path is not None else None,
        "what": trouble.what,
        "remedy": trouble.remedy,
        "affected": list(trouble.affected),
    }


def _print(checked: Checked, repairs: Sequence[Repair], context: Context, vb: Connection) -> None:
    for repair in repairs:
        if not repair.is_done or not context.is_quiet:
            print(output.plain(repair.what if repair.is_done else f"Not repaired: {repair.what}"))
    for severity, heading in _HEADINGS.items():
        for trouble in checked.troubles:
            if trouble.severity is severity:
                name = f"{vb.repository.name_of(trouble.uuid)}: " if trouble.uuid is not None else ""
                print(output.plain(f"{heading}: {name}{trouble.sentence}"))
    if context.is_quiet:
        return
    backups, images = (sum(getattr(one, of) for one in checked.domains) for of in ("backups", "images"))
    print(output.plain(f"{_storage(checked.place)}."))
    bad = len(checked.affected)
    verdict = (
        f"{bad} backup{'s' * (bad != 1)} cannot be restored as {'they were' if bad != 1 else 'it was'}"
        if bad
        else "no damage found"
    )
    domains = len(checked.domains)
    print(
        f"{domains} domain{'s' * (domains != 1)}, {backups} backup{'s' * (backups != 1)}, {images} image"
        f"{'s' * (images != 1)}: {verdict} (data was not read: 'vbackup verify' does that)."
    )


def _storage(place: Place) -> str:
    features = (
        (place.locks, "locks", "does not lock", "locks unknown"),
        (place.reflinks, "shares data (reflink)", "no reflink", "reflink unknown"),
        (place.exchanges, "exchanges names", "no exchange of names", "exchange of names unknown"),
        (place.encrypted, "encrypted", "not encrypted", "whether it is encrypted is not known"),
    )
    return ", ".join(
        (
            f"Storage: {place.filesystem or 'unknown filesystem'}",
            f"{output.size(place.free_bytes)} of {output.size(place.size_bytes)} free",
            *(unknown if answer is None else yes if answer else no for answer, yes, no, unknown in features),
        )
    )
