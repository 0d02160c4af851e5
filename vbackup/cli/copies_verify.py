"""``vbackup verify --from``: read the objects of points at a target."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from vbackup.api import PARALLEL_OBJECTS, CopiesVerified, CopyVerifyRequest, OpenedCopies
from vbackup.cli import copies, output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError


def run(options: argparse.Namespace, context: Context) -> int:
    """Verify the domains, one after the other; the exit status is 6 if anything is damaged."""
    started = time.monotonic()
    copies.refuse(options, "force", "boot", "fsck", "disk")
    words = domain_words_of(options)
    if not options.all and not words:
        raise UsageError("Give a domain, or --all.")
    if options.backup is not None and (options.all or len(words) > 1):
        raise UsageError("--backup is about a backup of one domain.")
    with (
        context.reporting() as reporter,
        copies.opened(options, context, options.from_target, reporter) as target,
    ):
        done = [target.verify(_request(uuid, options)) for uuid in _uuids(target, words)]
    damaged = sum(len(one.damaged) for one in done)
    if context.as_json:
        duration_s = round(time.monotonic() - started, 3)
        context.print_document("vbackup.copyverify/1", _document(done, target.name, duration_s=duration_s))
    elif damaged or not context.is_quiet:
        for one in done:
            _print(one)
    return Status.CHAIN if damaged else Status.DONE


def _uuids(target: OpenedCopies, words: Sequence[str]) -> list[str]:
    if not words:
        return target.repository.uuids()
    return list(dict.fromkeys(target.repository.find(word) for word in words))


def _request(uuid: str, options: argparse.Namespace) -> CopyVerifyRequest:
    return CopyVerifyRequest(
        uuid,
        options.backup,
        parallel=PARALLEL_OBJECTS if options.parallel is None else options.parallel,
        bytes_s=options.speed,
        sample_percent=options.sample,
    )


def _document(done: Sequence[CopiesVerified], target: str, *, duration_s: float) -> dict[str, Any]:
    return {
        "target": target,
        "domains": [
            {
                "domain": {"name": one.domain_name, "uuid": one.uuid},
                "verified": list(one.points),
                "objects": one.objects,
                "read_bytes": one.read_bytes,
                "damaged": [{"id": backup_id, "reasons": list(reasons)} for backup_id, reasons in one.damage.items()],
            }
            for one in done
        ],
        "duration_s": duration_s,
    }


def _print(one: CopiesVerified) -> None:
    for backup_id, reasons in one.damage.items():
        for reason in reasons:
            print(output.plain(f"Damaged: {backup_id}: {reason}"))
    good = len(set(one.points) - set(one.damage))
    print(
        output.plain(
            f"Domain {one.domain_name}: {good} of {len(set(one.points) | set(one.damage))} backups are as they were"
            f" sent; {output.size(one.read_bytes)} read."
        )
    )
