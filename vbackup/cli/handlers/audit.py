"""``vbackup audit``: check that changed-block tracking missed nothing."""

from __future__ import annotations

import argparse
from typing import Any

from vbackup.api import BLOCK_BYTES, Audit, AuditRequest, DiskAudit, blocks_found, chance_to_miss, documents
from vbackup.cli import output
from vbackup.cli.arguments import domain_of
from vbackup.cli.context import Context
from vbackup.errors import Status

#: Numbers of wrong blocks for which the chance to miss them all is printed.
_EXAMPLES = (1, 10, 100, 1000)


def run(options: argparse.Namespace, context: Context) -> int:
    """Audit the domain and print what was found; the exit status is 6 if a change was missed."""
    request = AuditRequest(
        domain=domain_of(options),
        disks=tuple(options.disk),
        percent=options.sample,
        max_latency_ms=options.max_latency,
        speed_bytes_s=options.speed,
        scratch=options.scratch,
        wait_lock_s=options.wait_lock,
        exclusive=options.exclusive,
    )
    with context.connect() as vb, context.reporting(request.domain) as reporter:
        done = vb.audit(request, reporter=reporter)
    if context.as_json:
        context.print_document("vbackup.audit/1", _document(done))
    elif not context.is_quiet:
        _print(done)
    return Status.DONE if done.is_good else Status.CHAIN


def _document(done: Audit) -> dict[str, Any]:
    return {
        "domain": {"name": done.domain_name, "uuid": done.domain_uuid},
        "time": documents.time(done.time),
        "verdict": "good" if done.is_good else "missed",
        "disks": [_disk_document(disk) for disk in done.disks],
        "not_audited": [{"dev": one.dev, "reason": one.reason} for one in done.not_audited],
    }


def _disk_document(disk: DiskAudit) -> dict[str, Any]:
    found = disk.compared
    return {
        "dev": disk.dev,
        "backup": disk.backup,
        "verdict": "good" if disk.is_good else "missed",
        "complete": not disk.is_partial,
        "virtual_size_bytes": disk.size_bytes,
        "clean_bytes": found.clean_data * BLOCK_BYTES,
        "read_bytes": found.read_data * BLOCK_BYTES,
        "read_zero_bytes": found.read_zeros * BLOCK_BYTES,
        "wrong_bytes": found.wrong * BLOCK_BYTES,
        "ranges": [
            {"start_bytes": one.start_bytes, "length_bytes": one.length_bytes, "since": one.since}
            for one in found.ranges
        ],
        "chance_to_miss": [
            {"blocks": blocks, "chance": round(_chance(disk, blocks), 6)} for blocks in _EXAMPLES if found.read_data
        ],
    }


def _chance(disk: DiskAudit, blocks: int) -> float:
    return chance_to_miss(blocks, read=disk.compared.read_data, of=disk.compared.clean_data)


def _print(done: Audit) -> None:
    verdict = "tracking missed nothing" if done.is_good else "tracking missed changes"
    print(output.plain(f"Audit of domain {done.domain_name}, as of {output.local_time(done.time)}: {verdict}"))
    output.table(
        ("DISK", "SINCE", "UNCHANGED", "READ", "ZEROS READ", "WRONG"),
        [
            (
                disk.dev,
                disk.backup,
                output.size(disk.compared.clean_data * BLOCK_BYTES),
                output.size(disk.compared.read_data * BLOCK_BYTES),
                output.size(disk.compared.read_zeros * BLOCK_BYTES),
                output.size(disk.compared.wrong * BLOCK_BYTES),
            )
            for disk in done.disks
        ],
    )
    for disk in done.disks:
        for one in disk.compared.ranges[:10]:
            print(f"Disk {disk.dev}: wrong from byte {one.start_bytes} on, {one.length_bytes} bytes, since {one.since}")
        if disk.is_good:
            print(_confidence(disk))
        if disk.is_partial:
            print(f"Disk {disk.dev}: older backups have no block lists, so what only they have was not read.")


def _confidence(disk: DiskAudit) -> str:
    """Return what the sample proves, in a sentence."""
    found = disk.compared
    if not found.read_data:
        return f"Disk {disk.dev}: no data is unchanged since {disk.backup}; only zeros were read."
    if found.read_data >= found.clean_data:
        return f"Disk {disk.dev}: all data that is unchanged was read."
    blocks = blocks_found(read=found.read_data, of=found.clean_data)
    return (
        f"Disk {disk.dev}: {100 * found.read_data / found.clean_data:.3g} % of the unchanged data was read. Missed"
        f" changes of {output.size(blocks * BLOCK_BYTES)} ({blocks} blocks, anywhere) would have been found with a"
        f" chance of 95 %, one block with {100 * (1 - _chance(disk, 1)):.3g} %."
    )
