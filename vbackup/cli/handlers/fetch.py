"""``vbackup fetch``: make a repository out of a target."""

from __future__ import annotations

import argparse

from vbackup.api import PARALLEL_OBJECTS, FetchRequest
from vbackup.cli import copies, output
from vbackup.cli.arguments import domain_words_of
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """Fetch, and print how many backups were fetched; the status is 6 if some could not be read.

    Warnings have said which, and why.
    """
    request = FetchRequest(
        context.repository_path(),
        tuple(domain_words_of(options)),
        parallel=PARALLEL_OBJECTS if options.parallel is None else options.parallel,
        bytes_s=options.bwlimit,
    )
    with (
        context.reporting() as reporter,
        copies.opened(options, context, options.from_target, reporter) as target,
    ):
        done = target.fetch(request)
    if context.as_json:
        context.print_document(
            "vbackup.fetch/1",
            {
                "target": target.name,
                "repository": {"path": str(done.path), "id": done.repository_id},
                "domains": [
                    {
                        "domain": {"name": done.names[uuid], "uuid": uuid},
                        "fetched": list(ids),
                        "there": list(done.there[uuid]),
                        "unreadable": [
                            {"id": backup_id, "reason": reason} for backup_id, reason in done.unreadable[uuid].items()
                        ],
                    }
                    for uuid, ids in done.points.items()
                ],
                "fetched_bytes": done.fetched_bytes,
            },
        )
    elif not context.is_quiet:
        count = sum(len(ids) for ids in done.points.values())
        had = sum(len(ids) for ids in done.there.values())
        lost = sum(map(len, done.unreadable.values()))
        there = f" {had} were there." if had else ""
        not_fetched = f" {lost} could not be fetched, as the warnings say." if lost else ""
        print(
            output.plain(
                f"Fetched {count} backups of {len(done.points)} domains, {output.size(done.fetched_bytes)}, into the"
                f" repository {done.path}.{there}{not_fetched}"
            )
        )
    return Status.CHAIN if any(done.unreadable.values()) else Status.DONE
