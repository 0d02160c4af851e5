"""``vbackup forget``: give up a repository's claim on a domain."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vbackup import names
from vbackup.cli import output
from vbackup.cli.arguments import add_common, add_domain, seconds
from vbackup.cli.context import Context, domain_of
from vbackup.errors import Status, StorageError, UsageError

if TYPE_CHECKING:
    from vbackup.operations.forget import Claim, ForgetRequest, Forgotten
    from vbackup.repository.repository import Repository


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "forget",
        description="Remove all bitmaps that a repository has on the disks of a domain, running or off.",
        allow_abbrev=False,
    )
    add_domain(parser)
    add_common(parser)
    parser.add_argument("--repository-id", metavar="ID", help="in place of -r where the repository is gone")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument(
        "--force", action="store_true", help="with --repository-id: end a backup into it that is still in QEMU"
    )
    parser.add_argument(
        "--wait-lock", metavar="SECONDS", type=seconds, default=0.0, help="wait for another vbackup to end (default: 0)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, context: Context) -> int:
    """Forget, and tell what was removed and what was not."""
    from vbackup.domain.host import Host
    from vbackup.operations import forget

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
        repository = context.repository()
        return repository, repository.id
    if not names.REPOSITORY_ID.fullmatch(repository_id):
        raise UsageError(f"{repository_id!r} is not the id of a repository; 'vbackup bitmap list' shows the ids.")
    try:
        # The variable may name it, or another one, or one that is gone. If it is there, its lock is to be held.
        at_hand = context.repository() if context.has_repository else None
    except StorageError:
        at_hand = None
    return (at_hand if at_hand is not None and at_hand.id == repository_id else None), repository_id


def _document(done: Forgotten, request: ForgetRequest) -> dict[str, Any]:
    return {
        "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
        "repository": request.repository_id,
        "dry_run": request.dry_run,
        "removed": [_claim(one) for one in done.removed],
        "kept": [{**_claim(one.claim), "reason": one.reason} for one in done.kept],
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
    of = f"of repository {request.repository_id} {'in' if request.dry_run else 'from'} domain {done.domain_name}"
    count = len(done.removed)
    if not count:
        return f"There is no bitmap {of} that can be removed."
    what = f"{count} bitmap{'s' * (count > 1)} {of}"
    then = "the next backup of the domain into it is a full; the backups that are there stay."
    return f"Would remove {what}; then {then}" if request.dry_run else f"Removed {what}: {then}"
