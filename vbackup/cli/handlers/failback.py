"""``vbackup failback``: bring a domain back from its standby to the original."""

from __future__ import annotations

import argparse

from vbackup.api import FailbackRequest, documents
from vbackup.cli import output
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """Do it, and print how much was written to the original."""
    domain = domain_of(options)
    request = FailbackRequest(
        domain,
        options.standby,
        start=options.start,
        exclusive=options.exclusive,
        speed_bytes_s=options.speed,
        wait_lock_s=options.wait_lock,
    )
    with context.connect() as vb, context.reporting(domain) as reporter:
        done = vb.failback(request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.failback/1", documents.failed_back(done))
    elif not context.is_quiet:
        written = sum(one.written_bytes for one in done.original.disks)
        written += sum(full.written_bytes for full in done.original.in_full)
        state = ", and runs" if done.is_started else ""
        print(
            output.plain(
                f"The original of {done.original.domain_name} is as in backup {done.backup_id}, the standby's:"
                f" {output.size(written)} written{state}."
            )
        )
    return Status.DONE
