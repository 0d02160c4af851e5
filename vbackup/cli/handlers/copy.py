"""``vbackup copy``: bring backups to a target."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.api import PARALLEL_OBJECTS, Connection, Copied, CopiedPoint, CopyRequest, documents
from vbackup.cli import copies, copies_rewrap, one_by_one, output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, VbackupError, error_document


def run(options: argparse.Namespace, context: Context) -> int:
    """Copy the domains, one after the other; the exit status is 3 if it failed for some of several.

    If all of several have failed for the same reason, as for one of the target's, it is that of the error.
    """
    started = time.monotonic()
    words = domain_words_of(options)
    if options.rewrap:
        return copies_rewrap.run(options, words, context)
    if not options.all and not words:
        raise UsageError("Give a domain, or --all.")
    place = copies.place_of(options, options.to)
    vb = context.connect()
    repository = vb.repository
    uuids = [*repository.uuids(), *repository.linked()] if options.all else context.uuids_of(repository, words)
    is_one = not options.all and len(uuids) == 1
    with vb, context.reporting(repository.name_of(uuids[0]) if is_one else None) as reporter:
        done, failed = one_by_one.run(
            uuids,
            lambda uuid, reporter: vb.copy(_request(uuid, options), place, reporter=reporter),
            repository=repository,
            reporter=reporter,
            is_one=is_one,
        )
    if is_one and failed:
        raise next(iter(failed.values()))
    duration_s = round(time.monotonic() - started, 3)
    if context.as_json:
        document = _document(done, failed, vb, target=options.to, dry_run=options.dry_run)
        context.print_document("vbackup.copy/1", {**document, "duration_s": duration_s})
    elif options.dry_run or not context.is_quiet:
        _print(done, dry_run=options.dry_run)
        if not done and not failed:
            print(output.plain(f"No domains in {repository.path} yet."))
    if failed:
        print(f"vbackup: {len(failed)} of {len(uuids)} domains failed.", file=sys.stderr)
        reasons = {(err.status, str(err)) for err in failed.values()}
        if not done and len(reasons) == 1:
            [(status, _)] = reasons
            return status
        return Status.SOME_FAILED
    return Status.CHAIN if any(one.skipped for one in done) else Status.DONE


def _request(uuid: str, options: argparse.Namespace) -> CopyRequest:
    return CopyRequest(
        uuid,
        since=options.since,
        full_every=options.full_every,
        bytes_s=options.bwlimit,
        parallel=PARALLEL_OBJECTS if options.parallel is None else options.parallel,
        immutable_days=options.immutable,
        dry_run=options.dry_run,
        take_over=options.take_over,
        wait_lock_s=options.wait_lock,
    )


def _document(
    done: Sequence[Copied], failed: Mapping[str, VbackupError], vb: Connection, *, target: str, dry_run: bool
) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "target": target,
        "domains": [
            {
                "domain": {"name": one.domain_name, "uuid": one.uuid},
                "copied": [_point_document(point) for point in one.points],
                "there": list(one.there),
                "passed": list(one.passed),
                "skipped": [{"id": backup_id, "reason": reason} for backup_id, reason in one.skipped.items()],
                "size_bytes": one.size_bytes,
            }
            for one in done
        ],
        "failed": [
            {"domain": {"name": vb.repository.name_of(uuid), "uuid": uuid}, "error": error_document(err)}
            for uuid, err in failed.items()
        ],
    }


def _point_document(point: CopiedPoint) -> dict[str, Any]:
    return {
        "id": point.id,
        "time": documents.time(point.time),
        "disks": [{"dev": dev, "form": form, "base": point.bases[dev]} for dev, form in point.forms.items()],
        "size_bytes": point.size_bytes,
        "objects": point.objects,
        "found_objects": point.found_objects,
    }


def _print(done: Sequence[Copied], *, dry_run: bool) -> None:
    for number, one in enumerate(done):
        if number:
            print()
        print(output.plain(f"Domain {one.domain_name} ({one.uuid})"))
        if one.points:
            output.table(("ID", "TIME", "SIZE", "DISKS"), [_row(point) for point in one.points])
        for backup_id, reason in one.skipped.items():
            print(output.plain(f"Not copied: {backup_id}: {reason}"))
        print(_summary(one, dry_run=dry_run))


def _row(point: CopiedPoint) -> tuple[str, ...]:
    disks = ", ".join(
        f"{dev} {form}" if point.bases[dev] is None else f"{dev} {form} on {point.bases[dev]}"
        for dev, form in point.forms.items()
    )
    return (point.id, output.local_minute(point.time), output.size(point.size_bytes), disks)


def _summary(one: Copied, *, dry_run: bool) -> str:
    total = len(one.points) + len(one.there) + len(one.skipped)
    older = f"; {len(one.passed)} older than the newest there" if one.passed else ""
    backups = f"{len(one.points)} of {total} backups{older}"
    if dry_run:
        return f"Would copy {backups}, at most {output.size(one.size_bytes)}; nothing was copied."
    return f"Copied {backups}; {output.size(one.size_bytes)} sent."
