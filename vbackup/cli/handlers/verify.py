"""``vbackup verify``: compare the images of backups with their block lists."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vbackup.api import (
    PARALLEL_IMAGES,
    Connection,
    Finding,
    Repository,
    Verdict,
    Verification,
    Verified,
    VerifyRequest,
    documents,
)
from vbackup.cli import copies_verify, one_by_one, output, proofs
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError, VbackupError, error_document

#: How many damaged backups are printed for each domain.
_MAX_LINES = 20


def run(options: argparse.Namespace, context: Context) -> int:
    """Verify the domains, one after the other; the exit status is 6 if anything is damaged."""
    if options.from_target is not None:
        return copies_verify.run(options, context)
    started = time.monotonic()
    proofs.check(options)
    words = _words(options)
    vb = context.connect()
    repository = vb.repository
    uuids = _uuids(words, options, context=context, vb=vb)
    if (options.boot or options.fsck) and uuids:
        with vb:
            return proofs.run(options, context, vb, uuids)
    request = VerifyRequest(
        options.backup,
        tuple(options.disk),
        percent=100.0 if options.sample is None else options.sample,
        parallel=PARALLEL_IMAGES if options.parallel is None else options.parallel,
        bytes_s=options.speed,
        is_forced=options.force,
    )
    is_one = not options.all and len(uuids) == 1
    with context.reporting(repository.name_of(uuids[0]) if is_one else None) as reporter:
        done, failed = one_by_one.run(
            uuids,
            lambda uuid, reporter: vb.verify(uuid, request, reporter=reporter),
            repository=repository,
            reporter=reporter,
            is_one=is_one,
        )
    if is_one and failed:
        raise next(iter(failed.values()))
    duration_s = round(time.monotonic() - started, 3)
    damaged = sum(len(one.damaged) for one in done)
    if context.as_json:
        context.print_document("vbackup.verify/1", _document(done, failed, repository, duration_s=duration_s))
    elif damaged or not context.is_quiet:
        if done or failed:
            _print(done, duration_s=duration_s)
        else:
            print(output.plain(f"No domains in {repository.path} yet."))
    return _status(done, failed, damaged)


def _words(options: argparse.Namespace) -> list[str]:
    words = domain_words_of(options)
    if options.backup is not None and (options.all or len(words) > 1):
        raise UsageError("--backup is about a backup of one domain.")
    if not options.all and not words and options.backup is None:
        raise UsageError("Give a domain, or --all.")
    return words


def _uuids(words: Sequence[str], options: argparse.Namespace, *, context: Context, vb: Connection) -> list[str]:
    """Return the UUIDs of the domains that the words name, each once. Raises DomainNotFoundError, ChainError."""
    if options.all:
        return [*vb.repository.uuids(), *vb.repository.linked()]
    if not words:
        return [vb.owner_of(options.backup)]
    found = context.uuids_of(vb.repository, words)
    if options.backup is not None and len(found) > 1:
        raise UsageError("--backup is about a backup of one domain.")
    return found


def _status(done: Sequence[Verified], failed: Mapping[str, VbackupError], damaged: int) -> int:
    """Return the exit status, after a line that says why it is not 0: damage comes before other failures."""
    total = len(done) + len(failed)
    if damaged:
        backups = sum(len(one.results.keys() | set(one.damaged)) for one in done)
        print(f"vbackup: {damaged} of {backups} backup{'s' * (backups != 1)} damaged.", file=sys.stderr)
        return Status.CHAIN
    if failed:
        print(f"vbackup: {len(failed)} of {total} domains failed.", file=sys.stderr)
        return Status.SOME_FAILED if done else next(iter(failed.values())).status
    return Status.DONE


def _document(
    done: Sequence[Verified], failed: Mapping[str, VbackupError], repository: Repository, *, duration_s: float
) -> dict[str, Any]:
    domains = [_domain_document(one) for one in done]
    domains += [
        {"uuid": uuid, "name": repository.name_of(uuid), "error": error_document(err)} for uuid, err in failed.items()
    ]
    return {
        "repository": {"path": str(repository.path), "id": repository.id},
        "domains": domains,
        "damaged": sum(len(one.damaged) for one in done),
        "duration_s": duration_s,
    }


def _domain_document(one: Verified) -> dict[str, Any]:
    return {
        "uuid": one.uuid,
        "name": one.name,
        "backups": [{"id": backup_id, **_result(result)} for backup_id, result in one.results.items()],
        "broken": [{"id": broken.id, "reason": broken.reason} for broken in one.broken],
        "damage": [_found_document(found) for found in one.damage],
        "images": one.images,
        "skipped": one.skipped,
        "read_bytes": one.read_bytes,
        "lists_made": one.lists,
        "kept": one.is_kept,
    }


def _result(result: Verification) -> dict[str, Any]:
    members = documents.verification(result)
    return {name: members[name] for name in ("verdict", "percent", "checked_bytes", "damage")}


def _found_document(found: Finding) -> dict[str, Any]:
    return {
        "backup": found.backup_id,
        "dev": found.dev,
        "file": str(found.path),
        "kind": found.kind.value,
        "reason": found.reason,
        "ranges": [{"start_bytes": start, "length_bytes": length} for start, length in found.ranges],
        "affected": list(found.affected),
        "unaffected": list(found.unaffected),
    }


def _print(done: Sequence[Verified], *, duration_s: float) -> None:
    """Print a line for each domain, and the backups that are not good; what is damaged was a warning."""
    for one in done:
        damaged = one.damaged
        count = len(one.results.keys() | set(damaged))
        images = f"{one.images} image{'s' * (one.images != 1)}, {output.size(one.read_bytes)}"
        skipped = f"; {one.skipped} read by the verify that was stopped" if one.skipped else ""
        lists = f"; {one.lists} block list{'s' * (one.lists != 1)} made" if one.lists else ""
        verdict = f"{len(damaged)} damaged" if damaged else "all good"
        print(
            output.plain(
                f"Domain {one.name}: {count} backup{'s' * (count != 1)}, {verdict} ({images} read{skipped}{lists})."
            )
        )
        for backup_id in damaged[:_MAX_LINES]:
            print(output.plain(f"  {backup_id}: {_what(one, backup_id)}"))
        if len(damaged) > _MAX_LINES:
            print(f"  and {len(damaged) - _MAX_LINES} more; --json lists all")
    print(f"Verified in {duration_s:.1f} s.")


def _what(one: Verified, backup_id: str) -> str:
    result = one.results.get(backup_id)
    if result is None or result.verdict is not Verdict.DAMAGED:
        return "broken"
    names = {f"disk {damage.dev}" if damage.dev else damage.file.rpartition("/")[2] for damage in result.damage}
    return ", ".join(sorted(names))
