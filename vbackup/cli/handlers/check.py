"""``vbackup check``: look through a repository, and repair it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vbackup.cli import output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import InterruptedBySignalError, Status, UsageError, VbackupError, error_document
from vbackup.operations import check
from vbackup.operations.check import Checked
from vbackup.operations.repair import Repair
from vbackup.report import Labelling, Reporter
from vbackup.repository.inspection import Severity, Trouble
from vbackup.repository.place import Place
from vbackup.repository.repository import Repository

_HEADINGS = {Severity.DAMAGE: "Damage", Severity.STORAGE: "Storage", Severity.WARNING: "Warning"}


def run(options: argparse.Namespace, context: Context) -> int:
    """Check, and repair if that is asked for; the exit status is that of what is wrong at the end."""
    words = domain_words_of(options)
    if not options.repair and (options.copies or options.dry_run):
        raise UsageError("--from and --dry-run need --repair.")
    repository = Repository.open(context.repository_path())
    copies = [Repository.open(Path(copy)) for copy in options.copies]
    if any(copy.path == repository.path for copy in copies):
        raise UsageError(f"--from {repository.path} is the repository itself; give a copy of it.")
    uuids = [context.uuid_of(repository, word) for word in words] or None
    repairs: list[Repair] = []
    failed: dict[str, VbackupError] = {}
    with context.reporting() as reporter:
        if options.repair:
            repairs, failed = _repair(uuids, copies, options, context=context, repository=repository, reporter=reporter)
        checked = check.run(uuids, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        context.print_document("vbackup.check/1", _document(checked, repairs, failed, dry_run=options.dry_run))
    else:
        _print(checked, repairs, context, repository=repository)
    if checked.status is Status.DONE and failed:
        return next(iter(failed.values())).status
    return checked.status


def _repair(
    uuids: Sequence[str] | None,
    copies: Sequence[Repository],
    options: argparse.Namespace,
    *,
    context: Context,
    repository: Repository,
    reporter: Labelling,
) -> tuple[list[Repair], dict[str, VbackupError]]:
    from vbackup.operations import repair

    repairs: list[Repair] = []
    failed: dict[str, VbackupError] = {}
    if uuids is None:
        repairs += repair.top(repository, dry_run=options.dry_run)
    for uuid in check.domains(repository) if uuids is None else uuids:
        of_domain = reporter.labelled(repository.name_of(uuid))
        try:
            repairs += _recover(uuid, options, context=context, repository=repository, reporter=of_domain)
            repairs += repair.run(
                uuid,
                repository=repository,
                copies=copies,
                reporter=of_domain,
                stop=context.stop,
                dry_run=options.dry_run,
            )
        except InterruptedBySignalError:
            raise
        except VbackupError as err:
            failed[uuid] = err
            of_domain.warning(str(err))
    return repairs, failed


def _recover(
    uuid: str, options: argparse.Namespace, *, context: Context, repository: Repository, reporter: Reporter
) -> list[Repair]:
    """Finish or undo the unfinished backups of a domain; libvirt is asked only if there are some."""
    if not set(repository.unfinished(uuid)) - set(repository.running(uuid)):
        return []
    from vbackup.domain.host import Host
    from vbackup.operations import recovery

    try:
        with Host(context.uri) as host:
            recovered = recovery.run(
                uuid,
                host=host,
                repository=repository,
                reporter=reporter,
                stop=context.stop,
                dry_run=options.dry_run,
            )
    except InterruptedBySignalError:
        raise
    except VbackupError as err:
        return [Repair(f"The unfinished backups were left: {err}", uuid, is_done=False)]
    verb = "would be" if options.dry_run else "was"
    return [Repair(f"Backup {one.id} {verb} {one.remedy.done}: {one.reason}.", uuid) for one in recovered]


def _document(
    checked: Checked, repairs: Sequence[Repair], failed: dict[str, VbackupError], *, dry_run: bool
) -> dict[str, Any]:
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
        "repairs": [{"domain": {"uuid": one.uuid}, "what": one.what, "done": one.is_done} for one in repairs],
        "failed": [
            {"domain": {"uuid": uuid}, "message": str(err), "error": error_document(err)}
            for uuid, err in failed.items()
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


def _print(checked: Checked, repairs: Sequence[Repair], context: Context, *, repository: Repository) -> None:
    for repair in repairs:
        if not repair.is_done or not context.is_quiet:
            print(output.plain(repair.what if repair.is_done else f"Not repaired: {repair.what}"))
    for severity, heading in _HEADINGS.items():
        for trouble in checked.troubles:
            if trouble.severity is severity:
                name = f"{repository.name_of(trouble.uuid)}: " if trouble.uuid is not None else ""
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
