"""``vbackup replicate``: bring a standby to a backup, or show the standbys."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone

from vbackup.api import ReplicateRequest, StandbyStatus, documents
from vbackup.cli import output
from vbackup.cli.arguments import domain_of, optional_domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, domain_argument


def run(options: argparse.Namespace, context: Context) -> int:
    """Apply the backup, and print how much was written."""
    if options.status:
        return _show(options, context)
    domain = domain_of(options)
    if not options.to:
        raise UsageError("No host given: --to names the libvirt that has the standby, such as qemu+ssh://hv2/system.")
    request = ReplicateRequest(
        domain,
        options.to,
        options.directory,
        options.backup,
        options.host,
        exclusive=options.exclusive,
        speed_bytes_s=options.speed,
        wait_lock_s=options.wait_lock,
    )
    with context.connect() as vb, context.reporting(domain) as reporter:
        done = vb.replicate(request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.replicate/1", documents.replicated(done))
    elif not context.is_quiet:
        was = "it is new" if done.before is None else f"it was as in {done.before}"
        print(
            output.plain(
                f"The standby of domain {done.backup.domain_name} at {done.uri} is as in backup {done.backup.id}:"
                f" {output.size(done.written_bytes)} written; {was}."
            )
        )
    return Status.DONE


def _show(options: argparse.Namespace, context: Context) -> int:
    for name in ("to", "directory", "backup", "host"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} is not for --status, which shows all standbys of a domain.")
    domain = optional_domain_of(options)
    with context.connect() as vb, context.reporting(domain, steps=False) as reporter:
        found = vb.standbys([] if domain is None else [domain], reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.standbys/1", {"standbys": [documents.standby(one) for one in found]})
    elif found:
        _print(found)
    else:
        print("No standbys.")
    return Status.DONE


def _print(found: Sequence[StandbyStatus]) -> None:
    now = datetime.now(timezone.utc)
    rows = []
    for one in found:
        state = f"{one.condition.value}, running" if one.is_running else one.condition.value
        age = "" if one.time is None else output.age(now - one.time)
        rows.append([one.name, state, age, one.backup_id or "", str(len(one.behind)), one.uri])
    output.table(["DOMAIN", "STATE", "AGE", "BACKUP", "BEHIND", "HOST"], rows)
    for one in found:
        if one.reason is not None:
            print(output.plain(f"{one.uri}: {one.reason}"))
        if one.failback is not None:
            again = f"vbackup failback {domain_argument(one.name)} --from {shlex.quote(one.uri)}"
            print(output.plain(f"{one.name}: the original still has to get backup {one.failback}: '{again}'."))
