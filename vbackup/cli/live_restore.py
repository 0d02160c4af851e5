"""``vbackup restore --live``: run a domain from a backup while its data comes home, go on with that, or abort it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from vbackup.api import (
    AbortRequest,
    Connection,
    DomainScripts,
    LiveAborted,
    LiveRequest,
    LiveRestored,
    ResumeRequest,
    documents,
)
from vbackup.cli import output, script_options
from vbackup.cli.arguments import backup_of, domain_of, wanted_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

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
    with context.connect() as vb:
        if options.abort:
            return _abort(options, vb, context)
        if options.resume:
            done, scripts = _resume(options, vb, context)
        else:
            done, scripts = _start(options, destinations, vb, context)
    if context.as_json:
        context.print_document(_SCHEMA, {**documents.live_restored(done), "scripts": scripts.documents()})
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
    options: argparse.Namespace, destinations: Mapping[str, Path], vb: Connection, context: Context
) -> tuple[LiveRestored, DomainScripts]:
    backup_id = backup_of(options)
    request = LiveRequest(
        context.uuid_of(vb.repository, domain_of(options)),
        options.output,
        wanted_of(options, backup_id),
        speed_bytes_s=options.speed,
        name=options.name,
        destinations=destinations,
        checkpoint=not options.no_checkpoint,
    )
    with context.reporting(domain_of(options)) as reporter:
        own = script_options.of_domain(
            options, domain_of(options), work="restore", reporter=reporter, stop=context.stop
        )
        done = vb.restore_live(request, pool=options.pool, scripts=own, reporter=reporter)
    return done, own


def _resume(options: argparse.Namespace, vb: Connection, context: Context) -> tuple[LiveRestored, DomainScripts]:
    request = ResumeRequest(_domain(options), options.output, speed_bytes_s=options.speed)
    with context.reporting(request.domain) as reporter:
        own = script_options.of_domain(options, request.domain, work="restore", reporter=reporter, stop=context.stop)
        done = vb.resume_live(request, scripts=own, reporter=reporter)
    return done, own


def _abort(options: argparse.Namespace, vb: Connection, context: Context) -> int:
    request = AbortRequest(_domain(options), options.output, is_confirmed=options.yes)
    with context.reporting(request.domain) as reporter:
        done = vb.abort_live(request, reporter=reporter)
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


def _aborted_document(done: LiveAborted) -> dict[str, object]:
    return {
        "id": done.backup_id,
        "state": "aborted",
        "domain": {"name": done.name, "uuid": done.uuid},
        "removed": [str(path) for path in done.removed],
    }
