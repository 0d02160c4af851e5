"""``vbackup backup``: back up one domain, running or shut off; vbackup.cli.batch does it for more than one."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace

from vbackup.api import BackupRequest, Connection, documents, read_hosts
from vbackup.cli import batch, fleet, output, plans, script_options
from vbackup.cli.arguments import domains_of
from vbackup.cli.context import Context
from vbackup.cli.making import tls_of
from vbackup.errors import Status, UsageError
from vbackup.model import Backup, Compression, Level, Quiesce, Transport


def run(options: argparse.Namespace, context: Context) -> int:
    """Back up the domains, or plan their backups, and print the result."""
    words = domains_of(options)
    if options.group and options.parallel is not None:
        raise UsageError("A group is always backed up at once; leave out --parallel or --group.")
    request = replace(request_of(options, words[0] if words else ""), note=options.note, until=options.until)
    uris = _hosts(options, context)
    if uris is not None:
        with context.connect_all(uris) as vb_all:
            return fleet.run(request, words, options=options, context=context, vb=vb_all)
    with ExitStack() as stack:
        with script_options.beginning(options, words[0] if len(words) == 1 else "", context):
            vb = stack.enter_context(context.connect())
            is_one = not options.group and len(words) == 1 and not options.exclude and vb.is_one(words[0], request)
            selected = None if is_one else batch.select(words, options, vb)
        if selected is not None:
            return batch.run(request, selected, options=options, context=context, vb=vb)
        if options.dry_run:
            _plan(request, context, vb)
        else:
            _back_up(request, options, context=context, vb=vb)
    return Status.DONE


def _hosts(options: argparse.Namespace, context: Context) -> list[str] | None:
    """Return the URIs of the hosts to back up, or None for the one that -c or libvirt chooses. Raises UsageError."""
    listed = [] if options.hosts is None else read_hosts(options.hosts)
    if options.hosts is None and len(context.uris) <= 1:
        if options.parallel_per_host is not None:
            raise UsageError("--parallel-per-host is for several hosts: give --hosts FILE, or -c several times.")
        return None
    if options.group:
        raise UsageError("A group has one moment and one host: leave out --group, or give one host with -c.")
    return [*context.uris, *listed]


def request_of(options: argparse.Namespace, domain: str) -> BackupRequest:
    """Return what commands.backup.add_making's arguments and --level ask for. Raises UsageError."""
    if options.fleecing is not None and options.no_fleecing:
        raise UsageError("--fleecing and --no-fleecing exclude each other; leave out one of them.")
    return BackupRequest(
        domain=domain,
        level=Level(options.level),
        full_every_s=_full_every_s(options),
        disks=tuple(options.disk),
        excluded_disks=tuple(options.exclude_disk),
        quiesce=Quiesce(options.quiesce),
        freeze_limit_s=options.freeze_limit,
        speed_bytes_s=options.speed,
        max_latency_ms=options.max_latency,
        compression=Compression(options.compress),
        wait_lock_s=options.wait_lock,
        fleecing=options.fleecing,
        no_fleecing=options.no_fleecing,
        transport=Transport(options.transport),
        tls=tls_of(options),
        exclusive=options.exclusive,
        allow_reflink=options.allow_reflink,
        with_media=options.with_media,
    )


def _full_every_s(options: argparse.Namespace) -> float | None:
    """Return how old a full may be. Raises UsageError if the level is asked for."""
    every_s: float | None = getattr(options, "full_every", None)  # a stream has no such option
    if every_s is not None and options.level != Level.AUTO.value:
        raise UsageError(f"--full-every is for --level auto, and --level {options.level} is given; leave out one.")
    return every_s


def _plan(request: BackupRequest, context: Context, vb: Connection) -> None:
    with context.reporting(request.domain) as reporter:
        plan = vb.plan(request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.plan/1", documents.plan(plan))
    else:
        plans.print_plan(plan)


def _back_up(request: BackupRequest, options: argparse.Namespace, *, context: Context, vb: Connection) -> None:
    with context.reporting(request.domain) as reporter:
        own = script_options.of_domain(options, request.domain, work="backup", reporter=reporter, stop=context.stop)
        done = vb.backup(request, total_speed_bytes_s=options.total_speed, scripts=own, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.backup/1", {**documents.backup(done), "scripts": own.documents()})
    elif not context.is_quiet:
        _print(done)


def _print(done: Backup) -> None:
    print(output.plain(f"Backup {done.id} of domain {done.domain_name}"))
    output.table(
        ("DISK", "LEVEL", "COPIED", "SIZE", "WHY"),
        [
            (
                image.dev,
                image.level.value,
                output.size(image.copied_bytes),
                output.size(image.file_size_bytes),
                image.reason,
            )
            for image in done.disks
        ],
    )
    for disk in done.left_out:
        output.labelled("Left out: ", f"{disk.dev} ({disk.reason})")
    frozen = f", frozen for {done.frozen_ms} ms" if done.frozen_ms else ""
    print(f"{done.consistency.value.capitalize()}-consistent{frozen}; {done.duration_s:.1f} s.")
