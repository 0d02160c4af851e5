"""``vbackup forget``: remove the bitmaps of a repository from a domain."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup import names
from vbackup.api import Claim, Connection, ForgetRequest, Forgotten
from vbackup.cli import output
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Remove the bitmaps and print which; the exit status is 5 if a disk could not be examined."""
    with context.connect() if options.repository_id is None else context.connect_to_libvirt() as vb:
        request = _request(options, vb)
        with context.reporting(request.domain) as reporter:
            done = vb.forget(request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.forget/1", _document(done, request))
    elif request.dry_run or not context.is_quiet:
        _print(done, request)
    return Status.UNSUITABLE if done.unopened else Status.DONE


def _request(options: argparse.Namespace, vb: Connection) -> ForgetRequest:
    """Return what is asked for. Raises UsageError."""
    repository_id: str | None = options.repository_id
    if repository_id is None and options.force:
        raise UsageError(
            "--force needs --repository-id: with -r, the repository's lock shows whether a backup is running."
        )
    if repository_id is not None and not names.REPOSITORY_ID.fullmatch(repository_id):
        raise UsageError(f"{repository_id!r} is not the id of a repository; 'vbackup bitmap list' shows ids.")
    return ForgetRequest(
        domain=domain_of(options),
        repository_id=vb.repository.id if repository_id is None else repository_id,
        is_by_id=repository_id is not None,
        dry_run=options.dry_run,
        force=options.force,
        wait_lock_s=options.wait_lock,
        exclusive=options.exclusive,
    )


def _document(done: Forgotten, request: ForgetRequest) -> dict[str, Any]:
    return {
        "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
        "repository": request.repository_id,
        "dry_run": request.dry_run,
        "removed": [_claim(claim) for claim in done.removed],
        "kept": [{**_claim(kept.claim), "reason": kept.reason} for kept in done.kept],
        "unopened": [{"dev": dev, "reason": reason} for dev, reason in done.unopened.items()],
    }


def _claim(claim: Claim) -> dict[str, Any]:
    return {
        "dev": claim.dev,
        "node_name": claim.layer.node_name,
        "file": claim.layer.filename,
        "name": claim.name,
        "checkpoint": claim.checkpoint,
    }


def _print(done: Forgotten, request: ForgetRequest) -> None:
    if done.removed:
        output.table(
            ("DISK", "NODE", "BITMAP"),
            [(claim.dev or "-", claim.layer.node_name, claim.name) for claim in done.removed],
        )
    print(output.plain(_summary(done, request)))


def _summary(done: Forgotten, request: ForgetRequest) -> str:
    count = len(done.removed)
    if not count:
        return f"No bitmap of repository {request.repository_id} on domain {done.domain_name} can be removed."
    verb = "Would remove" if request.dry_run else "Removed"
    bitmaps = f"{count} bitmap{'s' * (count > 1)} of repository {request.repository_id}"
    return (
        f"{verb} {bitmaps} from domain {done.domain_name}. The domain's next backup to that repository"
        f" {'would' if request.dry_run else 'will'} be full; existing backups stay."
    )
