"""``vbackup forget``: give up a repository's claim on a domain."""

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
    """Forget, and tell what was removed and what was not."""
    repository, repository_id = _repository(options, context)
    if options.force and options.repository_id is None:
        raise UsageError(
            "--force goes with --repository-id: with -r the repository's lock tells whether a backup runs."
        )
    request = forget.ForgetRequest(
        domain=domain_of(options),
        repository_id=repository_id,
        dry_run=options.dry_run,
        force=options.force,
        wait_lock_s=options.wait_lock,
    )
    with Host(context.uri) as host, context.reporting() as reporter:
        done = forget.run(request, host=host, repository=repository, reporter=reporter, stop=context.stop)
    if context.as_json:
        context.print_document("vbackup.forget/1", _document(done, request))
    else:
        _print(done, request)
    return Status.UNSUITABLE if done.unopened else Status.DONE


def _repository(options: argparse.Namespace, context: Context) -> tuple[Repository | None, str]:
    """The repository where it is at hand, and its id."""
    repository_id: str | None = options.repository_id
    if repository_id is None:
        repository = Repository.open(context.repository_path())
        return repository, repository.id
    if not names.REPOSITORY_ID.fullmatch(repository_id):
        raise UsageError(f"{repository_id!r} is not the id of a repository; 'vbackup bitmap list' shows the ids.")
    try:
        # The variable may name it, or another one, or one that is gone. If it is there, its lock is to be held.
        at_hand = Repository.open(context.repository_path()) if context.has_repository else None
    except StorageError:
        at_hand = None
    return (at_hand if at_hand is not None and at_hand.id == repository_id else None), repository_id


def _document(done: forget.Forgotten, request: forget.ForgetRequest) -> dict[str, Any]:
    return {
        "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
        "repository": request.repository_id,
        "dry_run": request.dry_run,
        "removed": [_claim(one) for one in done.removed],
        "kept": [{**_claim(one.claim), "reason": one.reason} for one in done.kept],
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
    of = f"of repository {request.repository_id} {'in' if request.dry_run else 'from'} domain {done.domain_name}"
    count = len(done.removed)
    if not count:
        return f"There is no bitmap {of} that can be removed."
    what = f"{count} bitmap{'s' * (count > 1)} {of}"
    then = "the next backup of the domain into it is a full; the backups that are there stay."
    return f"Would remove {what}; then {then}" if request.dry_run else f"Removed {what}: {then}"
