"""``vbackup restore --live``: run a domain from a backup while its data comes home, go on with that, or abort it."""

from __future__ import annotations

import argparse

from vbackup.api import AbortRequest, Connection, LiveAborted, LiveRequest, LiveRestored, ResumeRequest, documents
from vbackup.cli import output
from vbackup.cli.arguments import backup_of, domain_of, wanted_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

_SCHEMA = "vbackup.liverestore/1"
#: Options of ``restore`` that a live restore has no use for, and why.
_OTHERS = {
    "in_place": "a live restore makes new images",
    "format": "a live restore makes qcow2 images",
    "exclusive": "it is for a restore with --in-place",
    "wait_lock": "it is for a restore with --in-place",
    "no_checkpoint": "after a live restore the next backup is a full anyway",
    "disk": "a domain that runs at once needs all of its disks, as new images in the directory",
    "pool": "the new images are in the directory",
    "define": "a live restore defines and starts the domain itself",
    "start": "a live restore defines and starts the domain itself",
    "name": "the domain keeps its name",
    "keep_old": "it is for a restore with --in-place",
}


def run(options: argparse.Namespace, context: Context) -> int:
    """Start, resume or abort, and print what has become of it."""
    if not options.live:
        raise UsageError("--resume, --abort and --yes are for a restore with --live.")
    for name, reason in _OTHERS.items():
        if getattr(options, name, None):
            raise UsageError(f"--{name.replace('_', '-')} cannot be given with --live: {reason}.")
    if options.yes and not options.abort:
        raise UsageError("--yes is for --abort.")
    if options.resume and options.abort:
        raise UsageError("Give one of --resume and --abort.")
    with context.connect() as vb:
        if options.abort:
            return _abort(options, vb, context)
        done = _resume(options, vb, context) if options.resume else _start(options, vb, context)
    if context.as_json:
        context.print_document(_SCHEMA, _document(done))
    elif not context.is_quiet:
        print(output.plain(f"Domain {done.name} runs from its own images, restored from backup {done.backup_id}:"))
        for path in done.images.values():
            print(output.plain(f"  {path}"))
    return Status.DONE


def _start(options: argparse.Namespace, vb: Connection, context: Context) -> LiveRestored:
    backup_id = backup_of(options)
    request = LiveRequest(
        context.uuid_of(vb.repository, domain_of(options)),
        options.output,
        wanted_of(options, backup_id),
        speed_bytes_s=options.speed,
    )
    with context.reporting(domain_of(options)) as reporter:
        return vb.restore_live(request, reporter=reporter)


def _resume(options: argparse.Namespace, vb: Connection, context: Context) -> LiveRestored:
    request = ResumeRequest(_domain(options), options.output, speed_bytes_s=options.speed)
    with context.reporting(request.domain) as reporter:
        return vb.resume_live(request, reporter=reporter)


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


def _document(done: LiveRestored) -> dict[str, object]:
    return {
        "id": done.backup_id,
        "state": "home",
        "domain": {"name": done.name, "uuid": done.uuid},
        "disks": [
            {"dev": dev, "file": str(path), "format": "qcow2", "backup": done.backups[dev]}
            for dev, path in done.images.items()
        ],
        "machine": documents.machine(done.machine),
        "left_out": [documents.left_out(left) for left in done.left_out],
        "shared": [documents.left_out(left) for left in done.shared],
    }


def _aborted_document(done: LiveAborted) -> dict[str, object]:
    return {
        "id": done.backup_id,
        "state": "aborted",
        "domain": {"name": done.name, "uuid": done.uuid},
        "removed": [str(path) for path in done.removed],
    }
