"""``vbackup forget``: remove the bitmaps of a repository from a domain."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup import names
from vbackup.cli import output
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.domain.host import Host
from vbackup.errors import Status, StorageError, UsageError
from vbackup.operations import forget
from vbackup.repository.repository import Repository


def run(options: argparse.Namespace, context: Context) -> int:
    """Remove the bitmaps and print which; the exit status is 5 if a disk could not be examined."""
    repository, repository_id = _repository(options, context)
    if options.force and options.repository_id is None:
        raise UsageError(
            "--force needs --repository-id: with -r, the repository's lock shows whether a backup is running."
        )
    request = forget.ForgetRequest(
        domain=domain_of(options),
        repository_id=repository_id,
        is_by_id=options.repository_id is not None,
        dry_run=options.dry_run,
        force=options.force,
        wait_lock_s=options.wait_lock,
        exclusive=options.exclusive,
    )
    with Host(context.uri) as host, context.reporting(request.domain) as reporter:
        done = forget.run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        context.print_document("vbackup.forget/1", _document(done, request))
    elif request.dry_run or not context.is_quiet:
        _print(done, request)
    return Status.UNSUITABLE if done.unopened else Status.DONE


def _repository(options: argparse.Namespace, context: Context) -> tuple[Repository | None, str]:
    """Return the repository, None if it cannot be opened, and its id."""
    repository_id: str | None = options.repository_id
    if repository_id is None:
        repository = Repository.open(context.repository_path())
        return repository, repository.id
    if not names.REPOSITORY_ID.fullmatch(repository_id):
        raise UsageError(f"{repository_id!r} is not the id of a repository; 'vbackup bitmap list' shows ids.")
    try:
        # VBACKUP_REPOSITORY may name this repository, another, or one that is gone. If it is this one, it gets locked.
        given = Repository.open(context.repository_path()) if context.has_repository else None
    except StorageError:
        given = None
    return (given if given is not None and given.id == repository_id else None), repository_id


def _document(done: forget.Forgotten, request: forget.ForgetRequest) -> dict[str, Any]:
    return {
        "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
        "repository": request.repository_id,
        "dry_run": request.dry_run,
        "removed": [_claim(claim) for claim in done.removed],
        "kept": [{**_claim(kept.claim), "reason": kept.reason} for kept in done.kept],
        "unopened": [{"dev": dev, "reason": reason} for dev, reason in done.unopened.items()],
    }


def _claim(claim: forget.Claim) -> dict[str, Any]:
    return {
        "dev": claim.dev,
        "node_name": claim.layer.node_name,
        "file": claim.layer.filename,
        "name": claim.name,
        "checkpoint": claim.checkpoint,
    }


def _print(done: forget.Forgotten, request: forget.ForgetRequest) -> None:
    if done.removed:
        output.table(
            ("DISK", "NODE", "BITMAP"),
            [(claim.dev or "-", claim.layer.node_name, claim.name) for claim in done.removed],
        )
    print(output.plain(_summary(done, request)))


def _summary(done: forget.Forgotten, request: forget.ForgetRequest) -> str:
    count = len(done.removed)
    if not count:
        return f"No bitmap of repository {request.repository_id} on domain {done.domain_name} can be removed."
    verb = "Would remove" if request.dry_run else "Removed"
    bitmaps = f"{count} bitmap{'s' * (count > 1)} of repository {request.repository_id}"
    return (
        f"{verb} {bitmaps} from domain {done.domain_name}. The domain's next backup to that repository"
        f" {'would' if request.dry_run else 'will'} be full; existing backups stay."
    )
