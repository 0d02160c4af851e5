"""``vbackup stream``: back up to standard output, say what has become of that, restore from standard input."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from vbackup.api import EndedStream, Repository, StreamRequest, documents, open_stage
from vbackup.cli import output, pipes, script_options
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.cli.handlers import restore as restore_handler
from vbackup.cli.handlers.backup import request_of
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Run the inner command."""
    {"backup": _back_up, "commit": _commit, "abort": _abort, "restore": _restore}[options.stream_command](
        options, context
    )
    return Status.DONE


def _back_up(options: argparse.Namespace, context: Context) -> None:
    if context.as_json:
        raise UsageError("A stream is an archive on standard output, not JSON; leave out --json.")
    back_up(StreamRequest(request_of(options, domain_of(options)), options.job), options, context)


def back_up(request: StreamRequest, options: argparse.Namespace, context: Context) -> None:
    """Make the backup and write it to standard output; the messages go to --log."""
    stage: Path | Repository = options.stage
    if options.log is not None and options.stage.absolute() in options.log.absolute().parents:
        stage = open_stage(options.stage)  # made by the first backup: before it, there is no place for the log
    with (
        pipes.logged_to(options.log),
        pipes.output(context.stop) as write,
        context.connect_to_libvirt() as vb,
        context.reporting(request.backup.domain) as reporter,
    ):
        own = script_options.of_domain(
            options, request.backup.domain, work="backup", reporter=reporter, stop=context.stop
        )
        done = vb.backup_stream(request, write, stage=stage, scripts=own, reporter=reporter)
        reporter.step(f"Backup {done.id} was sent; it waits for its commit.")


def _commit(options: argparse.Namespace, context: Context) -> None:
    stage = Repository.open(options.stage, is_stage=True)
    with context.connect_to_libvirt() as vb, context.reporting(is_log=False) as reporter:
        ended = vb.commit_stream(
            domain_of(options), options.job, stage=stage, wait_lock_s=options.wait_lock, reporter=reporter
        )
    _print(ended, "committed", context, nothing="")


def _abort(options: argparse.Namespace, context: Context) -> None:
    stage = Repository.open(options.stage, is_stage=True)
    with context.connect_to_libvirt() as vb, context.reporting(is_log=False) as reporter:
        ended = vb.abort_stream(domain_of(options), options.job, stage=stage, reporter=reporter)
    _print(ended, "undone", context, nothing=f"No backup of job {options.job} is left to be undone.")


def _print(ended: EndedStream, done: str, context: Context, *, nothing: str) -> None:
    if context.as_json:
        context.print_document("vbackup.stream/1", {**ended_document(ended), "state": done})
    elif not context.is_quiet:
        already = "" if ended.is_done else " already"
        text = (
            nothing if ended.backup_id is None else f"Backup {ended.backup_id} of job {ended.job} was {done}{already}."
        )
        print(output.plain(text))


def ended_document(ended: EndedStream) -> dict[str, Any]:
    """Return what has become of the backup of a job as a JSON object."""
    return {
        "domain": {"uuid": ended.domain_uuid},
        "job": ended.job,
        "id": ended.backup_id,
        "changed": ended.is_done,
    }


def _restore(options: argparse.Namespace, context: Context) -> None:
    if options.output == "":
        raise UsageError("The path of the directory is empty.")
    if options.output is None and not context.has_repository:
        raise UsageError(
            "No repository given, and no directory: use -r DIR, or set VBACKUP_REPOSITORY, or name a directory for"
            " whole disks."
        )
    if options.output is not None and options.repository not in (None, os.environ.get("VBACKUP_REPOSITORY")):
        raise UsageError(f"Streams go to the directory {options.output}, or to the repository with -r, not to both.")
    restored = None
    with (
        pipes.logged_to(options.log),
        pipes.given(context.stop) as read,
        context.connect_to_libvirt() if options.output is not None else context.connect() as vb,
        context.reporting(is_log=False) as reporter,
    ):
        if options.output is None:
            received = vb.receive_stream(read, domain=options.domain, reporter=reporter)
        else:
            restored, received = vb.restore_stream(read, options.output, domain=options.domain, reporter=reporter)
    if context.as_json:
        backups = [{**documents.backup(one.backup), "new": one.is_new} for one in received]
        files = [] if restored is None else list(map(str, restored.files))
        context.print_document("vbackup.streams/1", {"backups": backups, "files": files})
    elif not context.is_quiet:
        for one in received:
            state = "was received" if one.is_new else "was there already"
            print(output.plain(f"Backup {one.backup.id} of domain {one.backup.domain_name} {state}."))
        if restored is not None:
            restore_handler.show(restored, context)
