"""``vbackup speed``: change the speed of a running backup."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import SpeedChanged, SpeedRequest
from vbackup.cli import output
from vbackup.cli.arguments import domain_of, swallowed
from vbackup.cli.context import Context
from vbackup.cli.values import new_speed
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Change the speed and print which jobs it was changed for."""
    if options.rate is None and options.domain_option is not None:  # then the only positional argument is the rate
        options.rate, options.domain = options.domain, None
    if options.rate is None:
        raise UsageError(f"No rate given{swallowed(options) or ': use bytes per second, such as 50M, or unlimited'}.")
    with context.connect_to_libvirt() as vb:
        request = SpeedRequest(
            domain=domain_of(options),
            speed_bytes_s=new_speed(options.rate),
            disks=tuple(options.disk),
            repository_id=vb.repository.id if vb.has_repository else None,
        )
        done = vb.set_speed(request)
    if context.as_json:
        context.print_document("vbackup.speed/1", _document(done, request.speed_bytes_s))
    elif not context.is_quiet:
        _print(done, request.speed_bytes_s)
    return Status.DONE


def _document(done: SpeedChanged, speed_bytes_s: int | None) -> dict[str, Any]:
    return {
        "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
        "speed_bytes_s": speed_bytes_s,
        "jobs": [
            {
                "dev": job.name.dev,
                "backup": job.name.backup_id,
                "repository": job.name.repository_id,
                "speed_before_bytes_s": job.before_bytes_s,
            }
            for job in done.jobs
        ],
    }


def _print(done: SpeedChanged, speed_bytes_s: int | None) -> None:
    output.table(
        ("DISK", "BACKUP", "REPOSITORY", "OLD", "NEW"),
        [
            (
                job.name.dev,
                job.name.backup_id,
                job.name.repository_id,
                output.rate(job.before_bytes_s),
                output.rate(speed_bytes_s),
            )
            for job in done.jobs
        ],
    )
