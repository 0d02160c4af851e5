"""``vbackup serve``: serve the disks of a backup by NBD until a signal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vbackup.api import Served, ServeRequest, default_overlays
from vbackup.cli import copies, output
from vbackup.cli.arguments import backup_of, domain_of, wanted_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Serve, print the addresses, and wait for a signal, which is the usual end, with status 0."""
    backup_id = backup_of(options)
    if options.overlay is not None and not options.writable:
        raise UsageError("--overlay needs --writable: nothing is written otherwise.")
    overlays = (options.overlay or default_overlays()) if options.writable else None
    domain = domain_of(options)
    wanted = wanted_of(options, backup_id)
    with (
        context.reporting(domain, steps=False) as reporter,
        copies.shown(options, context, domain, wanted, reporter=reporter) as (vb, uuid),
        vb.serve(ServeRequest(uuid, options.nbd, wanted, overlays=overlays), reporter=reporter) as served,
    ):
        _print(served, context, is_writable=overlays is not None)
        served.wait(context.stop)
    return Status.DONE


def _print(served: Served, context: Context, *, is_writable: bool) -> None:
    backup = served.backup
    if context.as_json:
        document: dict[str, Any] = {
            "id": backup.id,
            "domain": {"name": backup.domain_name, "uuid": backup.domain_uuid},
            "writable": is_writable,
            "disks": [
                {"dev": one.dev, "backup": one.backup_id, "size_bytes": one.size_bytes, "uri": one.uri}
                for one in served.exports.values()
            ],
        }
        context.print_line("vbackup.serve/1", document)
    elif not context.is_quiet:
        how = "for writing; nothing that is written is kept" if is_writable else "read-only"
        print(output.plain(f"Backup {backup.id} of domain {backup.domain_name} is served, {how}:"))
        for one in served.exports.values():
            of = f", of {one.backup_id}" if one.backup_id != backup.id else ""
            print(output.plain(f"  {one.uri} ({output.size(one.size_bytes)}{of})"))
        print("Ctrl-C ends it.")
    sys.stdout.flush()
