"""``vbackup restore --live``: run a domain from a backup while its data comes home, go on with that, or abort it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from vbackup.cli import output, script_options
from vbackup.cli.arguments import backup_of, domain_of, wanted_of
from vbackup.cli.context import Context
from vbackup.domain import pools
from vbackup.domain.host import Host
from vbackup.errors import Status, UsageError
from vbackup.operations import live_abort, live_restore, live_resume, restore_documents
from vbackup.operations.live_abort import Aborted, AbortRequest
from vbackup.operations.live_restore import LiveRequest, LiveRestored
from vbackup.operations.live_resume import ResumeRequest
from vbackup.repository.repository import Repository
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import DomainScripts

_SCHEMA = "vbackup.liverestore/1"
#: Options that only the beginning of a live restore takes.
_OF_START = ("disk", "pool", "name", "no_checkpoint")
#: Options of ``restore`` that a live restore has no use for, and why.
_OTHERS = {
    "in_place": "a live restore makes new images",
    "format": "a live restore makes qcow2 images",
    "exclusive": "it is for a restore with --in-place",
    "wait_lock": "it is for a restore with --in-place",
    "define": "a live restore defines and starts the domain itself",
    "start": "a live restore defines and starts the domain itself",
    "keep_old": "it is for a restore with --in-place",
}


def run(options: argparse.Namespace, destinations: Mapping[str, Path], context: Context) -> int:
    """Start, resume or abort, and print what has become of it. ``destinations``: of disks (dev) with a path."""
    _refuse(options)
    repository = Repository.open(context.repository_path())
    if options.abort:
        return _abort(options, repository, context)
    if options.resume:
        done, scripts = _resume(options, repository, context)
    else:
        done, scripts = _start(options, destinations, repository, context)
    if context.as_json:
        context.print_document(_SCHEMA, {**restore_documents.live_restored(done), "scripts": scripts.documents()})
    elif not context.is_quiet:
        print(output.plain(f"Domain {done.name} runs from its own images, restored from backup {done.backup_id}:"))
        for path in done.images.values():
            print(output.plain(f"  {path}"))
    return Status.DONE


def _refuse(options: argparse.Namespace) -> None:
    """Raise UsageError if the options cannot be given together."""
    if not options.live:
        raise UsageError("--resume, --abort and --yes are for a restore with --live.")
    for name, reason in _OTHERS.items():
        if getattr(options, name, None):
            raise UsageError(f"--{name.replace('_', '-')} cannot be given with --live: {reason}.")
    if options.yes and not options.abort:
        raise UsageError("--yes is for --abort.")
    if options.resume and options.abort:
        raise UsageError("Give one of --resume and --abort.")
    for name in _OF_START if options.resume or options.abort else ():
        if getattr(options, name):
            raise UsageError(
                f"--{name.replace('_', '-')} cannot be given with --resume or --abort: the restore has begun without"
                " or with it."
            )


def _start(
    options: argparse.Namespace, destinations: Mapping[str, Path], repository: Repository, context: Context
) -> tuple[LiveRestored, DomainScripts]:
    backup_id = backup_of(options)
    request = LiveRequest(
        context.uuid_of(repository, domain_of(options)),
        options.output,
        wanted_of(options, backup_id),
        speed_bytes_s=options.speed,
        name=options.name,
        destinations=destinations,
        checkpoint=not options.no_checkpoint,
    )
    with Host(context.uri) as host:
        pool = None if options.pool is None else pools.opened(host, options.pool)
        with context.reporting(domain_of(options)) as reporter:
            own = script_options.of_domain(
                options, domain_of(options), work="restore", reporter=reporter, stop=context.stop
            )
            done = own.around(
                lambda: live_restore.run(
                    request,
                    host=host,
                    repository=repository,
                    reporter=reporter,
                    stop=context.stop,
                    pool=pool,
                    scripts=own,
                ),
                after=ScriptPhase.POST_RESTORE,
                document=restore_documents.live_restored,
            )
    return done, own


def _resume(
    options: argparse.Namespace, repository: Repository, context: Context
) -> tuple[LiveRestored, DomainScripts]:
    request = ResumeRequest(_domain(options), options.output, speed_bytes_s=options.speed)
    with Host(context.uri) as host, context.reporting(request.domain) as reporter:
        own = script_options.of_domain(options, request.domain, work="restore", reporter=reporter, stop=context.stop)
        done = own.around(
            lambda: live_resume.run(
                request, host=host, repository=repository, reporter=reporter, stop=context.stop, scripts=own
            ),
            after=ScriptPhase.POST_RESTORE,
            document=restore_documents.live_restored,
        )
    return done, own


def _abort(options: argparse.Namespace, repository: Repository, context: Context) -> int:
    request = AbortRequest(_domain(options), options.output, is_confirmed=options.yes)
    with Host(context.uri) as host, context.reporting(request.domain) as reporter:
        done = live_abort.run(request, host=host, repository=repository, reporter=reporter)
    if context.as_json:
        context.print_document(_SCHEMA, _aborted_document(done))
    elif not context.is_quiet:
        print(output.plain(f"The live restore of domain {done.name} is aborted; the domain and its files are removed."))
    return Status.DONE


def _domain(options: argparse.Namespace) -> str:
    """Return the domain; the restore itself knows the backup."""
    if backup_of(options) is not None:
        raise UsageError("--resume and --abort take no backup: the restore that has begun is of one already.")
    return domain_of(options)


def _aborted_document(done: Aborted) -> dict[str, object]:
    return {
        "id": done.backup_id,
        "state": "aborted",
        "domain": {"name": done.name, "uuid": done.uuid},
        "removed": [str(path) for path in done.removed],
    }
